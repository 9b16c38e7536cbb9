"""Training validates in the middle of an epoch, and the rest of the epoch is in evaluation mode."""

import torch
from data import batches, digit_sequences
from fitting import Case, cross_entropy, first, step
from networks import convolutions
from torch import nn

SOURCE = "fartashf/vsepp#4"


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Three epochs; train() is called once at the beginning of each."""
    x, y = digit_sequences()
    for epoch in range(3):
        model.train()
        for k, batch in enumerate(batches(x, y, 64, epoch)[:20]):
            step(model, optimizer, batch, cross_entropy)
            if k == 8:
                model.eval()
                with torch.no_grad():
                    first(model, (x[:64], y[:64]))


def case(seed: int = 0) -> Case:
    """A 1-d network, trained with momentum."""
    torch.manual_seed(seed)
    model = convolutions(8, 10, 1)
    return Case(
        "eval-mode-in-training",
        model,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        how="watch",
        severity="risk",
        loop=loop,
    )
