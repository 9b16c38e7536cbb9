"""The loss jumps at the second epoch: the validation in between calls eval(), and nothing calls train() again."""

import torch
from data import batches, noisy
from fitting import Case, first, squares, step
from networks import UNet
from torch import nn

SOURCE = "wkentaro/pytorch-fcn#57"


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Two epochs with a validation after the first."""
    x, y = noisy(count=160)
    model.train()
    for epoch in range(2):
        for batch in batches(x, y, 16, epoch):
            step(model, optimizer, batch, squares)
        model.eval()
        with torch.no_grad():
            first(model, (x[:16], y[:16]))


def case(seed: int = 0) -> Case:
    """A U-Net that removes noise."""
    torch.manual_seed(seed)
    model = UNet(width=6)
    return Case(
        "eval-mode-in-training",
        model,
        optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        how="watch",
        severity="risk",
        loop=loop,
    )
