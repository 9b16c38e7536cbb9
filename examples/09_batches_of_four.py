"""Regression from batches of four neighbours: batch norm removes what they share, batch renormalization does not."""

from collections.abc import Callable

import torch
from torch import nn

import xhat.torch as xt


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in the order of their first coordinate, as a trajectory has them, and the function to learn."""
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    x = x[x[:, 0].argsort()]
    return x, torch.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]


def error(norm: Callable[[int], nn.Module]) -> float:
    """The share of the variance that a network does not explain, after 300 steps."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 64), norm(64), nn.ReLU(), nn.Linear(64, 64), norm(64), nn.ReLU(), nn.Linear(64, 1)]
    model, (x, y) = nn.Sequential(*layers), data(4000, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        rows = torch.randint(len(x) - 40, ()) + torch.randperm(40)[:4]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        optimizer.step()
    held_x, held_y = data(1000, seed=2)
    with torch.no_grad():
        return (nn.functional.mse_loss(model.eval()(held_x), held_y) / held_y.var()).item()


plain = error(nn.BatchNorm1d)
renormalized = error(lambda channels: xt.BatchRenorm1d(channels, warmup=(50, 150)))
print(f"unexplained variance with batch norm               {plain:.2f}")
print(f"                     with batch renormalization    {renormalized:.2f}")
print(f"                     without either                {error(lambda channels: nn.Identity()):.2f}")
assert renormalized < plain / 2
