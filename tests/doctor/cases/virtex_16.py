"""A frozen backbone changes: requires_grad=False stops the parameters, and the running statistics move on."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual
from torch import nn

SOURCE = "kdexd/virtex#16"


def case(seed: int = 0) -> Case:
    """A small ResNet with a head for another task; the whole model is in training mode."""
    torch.manual_seed(seed)
    backbone = residual(4)
    x, y = patches()
    fit(backbone, endless(x, y, 32, seed), steps=60)
    backbone.requires_grad_(False)
    model = nn.Sequential(backbone, nn.ReLU(), nn.Linear(4, 2))
    fit(model, endless(x, y % 2, 32, seed), steps=10)
    return Case(
        "frozen-but-moving", model.train(), batches(x, y % 2, 32, seed)[:8], cross_entropy, severity="risk"
    )
