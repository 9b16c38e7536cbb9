"""Inputs on which torch's own layers lose digits, or all of them: both errors side by side, with the oracle's numbers.

Each test also asks that torch is still wrong: when it no longer is, the claim goes.
"""

from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
import torch
from definition import generator, numbers
from torch import Tensor, nn

import xhat.torch as xt

F32 = float(np.finfo(np.float32).eps)


class Errors(NamedTuple):
    """Largest error of y, relative error of dx in the Euclidean norm, relative error of running_var."""

    y: float
    dx: float
    var: float


def errors(layer: nn.Module, x: Tensor, dy: Tensor) -> Errors:
    """One training step with momentum 1, so that the running statistics are the batch's."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    a = numbers(x)
    expected, seen = oracle.forward(a), oracle.moments(a)
    back = oracle.backward(numbers(dy), a)
    return Errors(
        oracle.worst(numbers(y), expected.y),
        oracle.relative_l2(numbers(leaf.grad), back.dx),
        oracle.relative_l2(numbers(layer.running_var), seen.m2 / (seen.m - 1)),
    )


def beside(x: Tensor) -> tuple[Errors, Errors]:
    """Ours and torch's."""
    layers: Any = (xt.BatchNorm1d, nn.BatchNorm1d) if x.dim() < 4 else (xt.BatchNorm2d, nn.BatchNorm2d)
    dy = torch.randn(x.shape, generator=generator("dy")).to(x.dtype)
    ours, theirs = (errors(layer(x.shape[1], momentum=1.0), x, dy) for layer in layers)
    print(f"\n{'':8}{'y':>12}{'dx':>12}{'var':>12}")
    for name, found in (("ours", ours), ("torch's", theirs)):
        print(f"{name:8}" + "".join(f"{e:12.1e}" for e in found))
    return ours, theirs


def with_offset(offset: float, *shape: int) -> Tensor:
    """Normal numbers around a large one."""
    return (torch.randn(shape, generator=generator("offset"), dtype=torch.float64) + offset).float()


@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
@pytest.mark.parametrize("where", ["(N, C)", "NHWC"])
def test_a_large_offset(where: str, offset: float) -> None:
    """Sums of float32 numbers lose the digits that a variance is made of."""
    x = (
        with_offset(offset, 4096, 5)
        if where == "(N, C)"
        else with_offset(offset, 8, 16, 16, 5).permute(0, 3, 1, 2)
    )
    ours, theirs = beside(x)
    assert max(ours) < 20 * F32, (ours, theirs)
    assert theirs.y > 50 * ours.y, (ours, theirs)
    assert theirs.dx > 50 * ours.dx, (ours, theirs)


@pytest.mark.parametrize("value", [0.1, 1e5 + 0.3])
@pytest.mark.parametrize("where", ["(N, C)", "NHWC"])
def test_a_constant_channel(where: str, value: float) -> None:
    """Its deviations are 0: y is bias, exactly."""
    shape = (1000, 3) if where == "(N, C)" else (5, 3, 10, 20)
    x = torch.full(shape, value)
    if where == "NHWC":
        x = x.to(memory_format=torch.channels_last)
    ours, theirs = (layer(3)(x).detach() for layer in layers_of(x))
    print(f"\nlargest |y|: ours {float(ours.abs().max())}, torch's {float(theirs.abs().max())}")
    assert torch.equal(ours, torch.zeros(shape))
    assert not torch.equal(theirs, ours)


def layers_of(x: Tensor) -> Any:
    """Ours and torch's for this number of dimensions."""
    return (xt.BatchNorm1d, nn.BatchNorm1d) if x.dim() < 4 else (xt.BatchNorm2d, nn.BatchNorm2d)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_numbers_near_the_ends_of_float32(scale: float) -> None:
    """The square of 1e30 is no float32 number, and neither is that of 1e-30."""
    x = with_offset(0.5, 512, 3) * scale
    eps = 1e-5 * min(scale, 1.0) ** 2
    ours, theirs = (layer(3, eps=max(eps, 1e-300))(x).detach() for layer in layers_of(x))
    expected = oracle.forward(numbers(x), eps=eps).y
    found = [oracle.worst(numbers(y), expected) for y in (ours, theirs)]
    print(f"\nlargest error of y: ours {found[0]:.1e}, torch's {found[1]:.1e}")
    assert found[0] < 4 * F32
    assert not found[1] < 0.1


def test_sixteen_bits() -> None:
    """In bfloat16 the errors of a sum are as large as the numbers."""
    x = with_offset(100, 2048, 5).bfloat16()
    ours, theirs = beside(x)
    assert ours.y < 2**-7
    assert ours.var < 20 * F32, (ours, theirs)
    assert theirs.var > 50 * ours.var, (ours, theirs)


def test_running_statistics_move_in_sixteen_bits() -> None:
    """In bfloat16 a step of momentum 0.01 is rounded away: torch's variance stays where it was."""
    x = with_offset(0, 256, 5) * 1.2
    ours, theirs = (layer(5, momentum=1e-3).bfloat16() for layer in layers_of(x))
    for _ in range(20):
        ours(x.bfloat16()), theirs(x.bfloat16())
    assert torch.equal(theirs.running_var, torch.ones(5, dtype=torch.bfloat16))
    expected = 1 + (1 - 0.999**20) * (x.bfloat16().double().var(0) - 1)
    torch.testing.assert_close(ours.running_var.double(), expected, rtol=1e-6, atol=0)


def test_an_empty_batch_leaves_the_average_right() -> None:
    """momentum=None averages over batches; torch counts the empty one and divides by one batch too many."""
    ours, theirs = (layer(1, momentum=None) for layer in layers_of(torch.empty(0, 1)))
    for layer in (ours, theirs):
        for x in (torch.full((4, 1), 2.0), torch.empty(0, 1), torch.full((4, 1), 4.0)):
            layer(x)
    assert ours.running_mean.item() == 3 and ours.num_batches_tracked == 2
    assert theirs.running_mean.item() != 3 and theirs.num_batches_tracked == 3
