"""Derivatives of every order, in float64, for every combination of options: against finite differences, and against
torch's derivatives of the definition.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from definition import (
    ACTIVATIONS,
    Problem,
    definition,
    generator,
    option_sets,
    problem,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import xhat.torch as xt

# torch's own forward mode is made with torch.jit.script.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

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


def statistics(training: bool) -> tuple[Tensor | None, Tensor | None]:
    """What evaluation is given."""
    if training:
        return None, None
    return torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.7, 1.9], dtype=torch.float64)


def ours(p: Problem, training: bool, rest: dict[str, Any]) -> Callable[..., Tensor]:
    """The batch norm as a function of the tensors that ask for a gradient."""

    def function(*asked: Tensor) -> Tensor:
        given = iter(asked)
        x, weight, bias, residual = (None if t is None else next(given) for t in p[:4])
        assert x is not None
        return xt.batch_norm(x, *statistics(training), weight, bias, training, 0.1, EPS, residual=residual, mask=p.mask,
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
