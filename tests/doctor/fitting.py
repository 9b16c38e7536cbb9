"""What a case is, and the few lines of training that all cases share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from data import Batches
from torch import Tensor, nn
from torch.nn import functional as F

Loss = Callable[[Any, Any], Tensor]


class Case(NamedTuple):
    """A model with a fault, and what the doctor must name first.

    cause      the cause; the first finding of `severity`, or of a worse one, must have it
    model      the model with its fault; for how="watch" before `loop` is run
    batches    what is diagnosed: pairs (x, y)
    loss       the loss of an output and a batch, or None
    how        "diagnose": xt.diagnose(model, batches, loss); "watch": the findings of xt.watch around `loop`;
               "checkpoint": the findings of a file with `state`; "ranks": diagnose on two ranks
    also       other causes that are true too, and may be called harmful
    """

    cause: str
    model: nn.Module
    batches: Any = ()
    loss: Any = None
    optimizer: torch.optim.Optimizer | None = None
    forward: Any = None
    how: Literal["diagnose", "watch", "checkpoint", "ranks"] = "diagnose"
    severity: Literal["harmful", "risk", "note"] = "harmful"
    also: tuple[str, ...] = ()
    loop: Callable[[nn.Module, torch.optim.Optimizer], None] | None = None
    state: Mapping[str, Any] | None = None


def first(model: nn.Module, batch: Any) -> Any:
    """The model's output for the first entry of a batch."""
    return model(batch[0])


def cross_entropy(output: Tensor, batch: Any) -> Tensor:
    """The cross entropy of a batch (x, labels)."""
    return F.cross_entropy(output, batch[1])


def squares(output: Tensor, batch: Any) -> Tensor:
    """The mean squared error of a batch (x, target)."""
    return F.mse_loss(output, batch[1])


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, loss: Loss) -> float:
    """One step of training."""
    optimizer.zero_grad()
    value = loss(first(model, batch), batch)
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(value.detach())


def fit(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss = cross_entropy,
    lr: float = 5e-3,
    steps: int | None = None,
    after: Callable[[int], None] | None = None,
) -> torch.optim.Optimizer:
    """Trains with Adam in the modes that the model has; returns the optimizer.

    `steps` steps have a learning rate that falls to zero; without a number, each batch has one at a constant rate.
    """
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    for k, batch in enumerate(batches):
        if steps is not None:
            if k == steps:
                break
            optimizer.param_groups[0]["lr"] = lr * (1 - k / steps)
        step(model, optimizer, batch, loss)
        if after is not None:
            after(k)
    return optimizer


def accuracy(model: nn.Module, batches: Batches) -> float:
    """The share of samples that a model gets right, in the modes that it has."""
    with torch.no_grad():
        right = [(first(model, b).argmax(1) == b[1]).float().mean() for b in batches]
    return float(torch.stack(right).mean())
