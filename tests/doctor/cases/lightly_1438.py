"""Linear probing: the backbone is frozen by requires_grad=False and stays in training mode."""

import torch
from data import batches, clips
from fitting import Case, cross_entropy, step
from networks import convolutions
from torch import nn

SOURCE = "lightly-ai/lightly#1438"


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One epoch of the linear layer."""
    model.train()
    for batch in batches(*clips(), 16):
        step(model, optimizer, batch, cross_entropy)


def case(seed: int = 0) -> Case:
    """A 3-d network for short films."""
    torch.manual_seed(seed)
    backbone = convolutions(3, 16, 3, width=8, depth=2)
    backbone.requires_grad_(False)
    model = nn.Sequential(backbone, nn.Linear(16, 4))
    optimizer = torch.optim.SGD(model[1].parameters(), 0.1)
    return Case("frozen-but-moving", model, optimizer=optimizer, how="watch", severity="risk", loop=loop)
