"""Derivatives of every order, in float64, for every combination of options: against finite differences, and against
torch's derivatives of the definition.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from beside import WARNS
from conftest import EPSILON
from definition import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    Problem,
    batch,
    definition,
    generator,
    option_sets,
    problem,
    relative,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import xhat.torch as xt

pytestmark = WARNS

EPS = 1e-2


def named(options: dict[str, Any]) -> str:
    """An option set as a test's name."""
    return ",".join(f"{k}={v}" for k, v in options.items())


def small(options: dict[str, Any], *shape: int) -> tuple[Problem, dict[str, Any]]:
    """Leaves in float64, whose pre-activations are away from a kink, and what remains of the options."""
    rest = dict(options)
    x = torch.randn(shape or (3, 2, 2), generator=generator("small"), dtype=torch.float64)
    p = problem(x, rest.pop("affine"), rest.pop("residual"), rest.pop("mask"), seed="small").leaves()
    rest["activation"] = ACTIVATIONS[rest["activation"]]
    assert definition(p, eps=EPS, **rest).pre.abs().min() > 1e-4
    return p, rest


def statistics(training: bool, channels: int) -> tuple[Tensor, Tensor] | None:
    """What evaluation is given."""
    if training:
        return None
    return torch.linspace(-0.2, 0.3, channels).double(), torch.linspace(0.7, 1.9, channels).double()


def ours(p: Problem, training: bool, rest: dict[str, Any]) -> Callable[..., Tensor]:
    """The batch norm as a function of the tensors that ask for a gradient."""

    def function(*asked: Tensor) -> Tensor:
        given = iter(asked)
        x, weight, bias, residual = (None if t is None else next(given) for t in p[:4])
        assert x is not None
        mean, var = statistics(training, x.shape[1]) or (None, None)
        return xt.batch_norm(x, mean, var, weight, bias, training, 0.1, EPS, residual=residual, mask=p.mask,
                             **rest)  # fmt: skip

    return function


TRAINING = [(True, o) for o in option_sets(True)]
EVALUATION = [(False, o) for o in option_sets(False)]
ALL = [
    pytest.param(t, o, id=("training," if t else "evaluation,") + named(o)) for t, o in TRAINING + EVALUATION
]


@pytest.mark.parametrize(("training", "options"), ALL)
def test_gradients(training: bool, options: dict[str, Any]) -> None:
    """Backward, forward mode and batches of gradients."""
    p, rest = small(options)
    assert gradcheck(ours(p, training, rest), p.asked, check_forward_ad=True, check_batched_grad=True,
                     check_batched_forward_grad=True, check_undefined_grad=True, fast_mode=True)  # fmt: skip


@pytest.mark.parametrize(("training", "options"), ALL)
def test_second_gradients(training: bool, options: dict[str, Any]) -> None:
    """Double backward, and forward over reverse."""
    p, rest = small(options)
    assert gradgradcheck(
        ours(p, training, rest), p.asked, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True
    )


# ------------------------------------------------------------------------------------- against torch's derivatives

HIGHER = [
    dict(correction=0, mask="none", residual=False, activation="none", affine="affine"),
    dict(correction=1, mask="none", residual=True, activation="none", affine="not affine"),
    dict(correction=1, mask="weights", residual=False, activation="relu", affine="no bias"),
    dict(correction=0, mask="bool", residual=True, activation="leaky_relu", affine="affine"),
    dict(correction=0, mask="weights", residual=True, activation="silu", affine="affine"),
    dict(correction=1, mask="none", residual=False, activation="silu", affine="affine"),
]


def losses(p: Problem, training: bool, rest: dict[str, Any]) -> Iterator[Tensor]:
    """A loss of ours and of the definition's, whose gradient is made from x: no path may count twice."""
    theirs = definition(
        p if training else p._replace(mask=None), statistics(training, p.x.shape[1]), eps=EPS, **rest
    )
    for y in (ours(p, training, rest)(*p.asked), theirs.y):
        w = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape)
        yield (w * y.double() ** 3 + y.double() ** 2 * p.x.double()).mean()


def derivatives(loss: Tensor, asked: list[Tensor], order: int) -> list[Tensor]:
    """Gradients of this order, each of the squared norm of the one before."""
    for _ in range(order - 1):
        gradients = torch.autograd.grad(loss, asked, create_graph=True)
        loss = sum((g.double().square().mean() for g in gradients), torch.zeros((), dtype=torch.float64))
    return list(torch.autograd.grad(loss, asked))


def compare(p: Problem, training: bool, rest: dict[str, Any], order: int, tolerance: float) -> None:
    mine, theirs = (derivatives(loss, p.asked, order) for loss in losses(p, training, rest))
    errors = [relative(a, b) for a, b in zip(mine, theirs, strict=True)]
    assert all(a.dtype == t.dtype for a, t in zip(mine, p.asked, strict=True))
    assert max(errors) < tolerance, errors


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("options", HIGHER, ids=named)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_order(training: bool, options: dict[str, Any], order: int) -> None:
    p, rest = small(options)
    compare(p, training, rest, order, 1e-11)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_double_backward_in_every_layout_and_dtype(layout: str, dtype: str) -> None:
    """The closed form of the second gradients, by the kernels; for 16 bits by torch's operations."""
    x = batch(layout, dtype=DTYPES[dtype])
    for options in HIGHER:
        rest = dict(options)
        p = problem(x, rest.pop("affine"), rest.pop("residual"), rest.pop("mask")).leaves()
        rest["activation"] = (
            "silu" if options["activation"] == "silu" else None
        )  # rounding may decide a slope
        compare(p, True, rest, 2, 300 * EPSILON[dtype])
