"""A batch of 32 in micro-batches of 4: accumulated gradients are those of other batch norms, exact ones are not."""

import copy

import torch
from torch import nn

import xhat.torch as xt


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points, and the function to learn."""
    x = torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return x, torch.sin(3 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]


def loss(output: torch.Tensor, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The mean over the samples of a batch."""
    return nn.functional.mse_loss(output, batch[1])


def whole(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """One pass of all samples."""
    loss(model(x), (x, y)).backward()


def plain(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """Gradient accumulation as it is commonly written."""
    for part in zip(x.split(4), y.split(4), strict=True):
        (loss(model(part[0]), part) * len(part[0]) / len(x)).backward()


def exact(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """The same micro-batches, with the batch norms of the whole batch."""
    xt.accumulate(model, zip(x.split(4), y.split(4), strict=True), loss)


torch.manual_seed(0)
layers = [nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()]
start, (x, y), (held_x, held_y) = nn.Sequential(*layers, nn.Linear(32, 1)), data(1000, 1), data(1000, 2)
first, errors = {}, {}
for step in (whole, plain, exact):
    model = copy.deepcopy(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for k in range(40):
        optimizer.zero_grad()
        rows = torch.randperm(1000, generator=torch.Generator().manual_seed(k))[:32]
        step(model, x[rows], y[rows])
        first.setdefault(step, model[0].weight.grad.clone())
        optimizer.step()
    errors[step] = (loss(model.eval()(held_x), (held_x, held_y)) / held_y.var()).item()
    off = (first[step] - first[whole]).norm() / first[whole].norm()
    print(
        f"{step.__name__:5s}  first gradient off by {off:.0e}, unexplained variance at the end {errors[step]:.4f}"
    )
assert abs(errors[exact] - errors[whole]) < 0.01 < errors[plain] - errors[whole]
