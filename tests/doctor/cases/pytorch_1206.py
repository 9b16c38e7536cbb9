"""In a fine-tuning the running statistics of all layers became NaN: the first layer that turned is wanted."""

import torch
from data import batches, patches
from fitting import Case, cross_entropy, step
from networks import residual
from torch import nn

SOURCE = "pytorch/pytorch#1206"


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One of the images is damaged."""
    x, y = patches()
    x = x.clone()
    x[123, 1, 5, 5] = float("nan")
    model.train()
    for batch in batches(x, y, 32):
        step(model, optimizer, batch, cross_entropy)


def case(seed: int = 0) -> Case:
    """A small ResNet."""
    torch.manual_seed(seed)
    model = residual(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return Case("statistics-not-finite", model, optimizer=optimizer, how="watch", severity="risk", loop=loop)
