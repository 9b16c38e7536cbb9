"""A folded network differs from the original, which was in training mode when the two were compared."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual

SOURCE = "DingXiaoH/RepVGG#9"


def case(seed: int = 0) -> Case:
    """The network is in evaluation mode, but its blocks were put back into training mode one by one."""
    torch.manual_seed(seed)
    model = residual(4)
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=100)
    model.eval()
    for block in list(model)[3:6]:
        block.train()
    return Case("train-mode-in-evaluation", model, batches(x, y, 2, seed)[:40], cross_entropy)
