"""The output in evaluation has changed: forward passes under no_grad in training mode moved the statistics."""

import torch
from data import batches, patches
from fitting import Case, cross_entropy, first, step
from networks import residual
from torch import nn

SOURCE = "pytorch/vision#2079"


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """An epoch, and then a validation without eval()."""
    x, y = patches()
    model.train()
    for batch in batches(x, y, 32)[:15]:
        step(model, optimizer, batch, cross_entropy)
    with torch.no_grad():
        for batch in batches(x, y, 32, 1)[:10]:
            first(model, batch)


def case(seed: int = 0) -> Case:
    """A small ResNet."""
    torch.manual_seed(seed)
    model = residual(4)
    return Case(
        "train-mode-in-evaluation",
        model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        how="watch",
        severity="risk",
        loop=loop,
    )
