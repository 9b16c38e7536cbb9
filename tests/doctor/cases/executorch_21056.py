"""The exported graph was trained, but its buffers were cut off: they still have their initial values."""

import torch
from data import batches, clips, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions

SOURCE = "pytorch/executorch#21056"


def case(seed: int = 0) -> Case:
    """A 3-d network."""
    torch.manual_seed(seed)
    model = convolutions(3, 4, 3, width=8, depth=2)
    x, y = clips()
    fit(model, endless(x, y, 16, seed), steps=60, lr=1e-2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.reset_running_stats()
    exported = torch.export.export(model.eval(), (x[:16],)).module()
    return Case("statistics-never-updated", exported, batches(x, y, 16, seed)[:8], cross_entropy)
