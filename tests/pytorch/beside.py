"""Ours and torch's own layer beside each other: in the same state, on the same numbers, in float64."""

from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn

import xhat.torch as xt

# torch's own forward mode and compiler are made with torch.jit.script.
WARNS = pytest.mark.filterwarnings("ignore:`torch.jit.script(_method)?` is deprecated")

CHANNELS = 3


def normal(seed: str, *shape: int) -> Tensor:
    """Normal numbers in float64 by a name."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


X = normal("transforms", 4, CHANNELS, 2, 5)
TANGENT = normal("tangent", 4, CHANNELS, 2, 5)


def layers(training: bool = True, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, in the same state, in which no number is a default."""
    ours = xt.BatchNorm2d(CHANNELS, dtype=torch.float64, **options)
    theirs = nn.BatchNorm2d(CHANNELS, dtype=torch.float64, **options)
    with torch.no_grad():
        for i, value in enumerate((*theirs.parameters(), *theirs.buffers())):
            if value.is_floating_point():
                value.copy_(torch.linspace(0.3 + i / 5, 1.7, CHANNELS))
    ours.load_state_dict(theirs.state_dict())
    return ours.train(training), theirs.train(training)


def same(got: Any, expected: Any) -> None:
    """To rounding."""
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y, the gradients and the buffers."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    return [y.detach(), leaf.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]  # type: ignore[list-item]
