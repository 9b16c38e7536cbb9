"""A network was exported in training mode: its batch norms use the batch in evaluation too."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual

SOURCE = "pytorch/pytorch#115715"


def case(seed: int = 0) -> Case:
    """A small ResNet, evaluated with batches of 2."""
    torch.manual_seed(seed)
    model = residual(4)
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=80)
    exported = torch.export.export(model.train(), (x[:2],)).module()
    return Case("exported-in-train-mode", exported, batches(x, y, 2, seed)[:40], cross_entropy)
