"""Contexts whose arrays have another shape or dtype than in the forward pass: an error, and no memory beyond them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import xhat
from xhat.errors import ContextError

CHANGES: dict[str, Callable[[xhat.Context], Any]] = {
    "statistics of another shape": lambda c: setattr(c.statistics, "shape", (20,)),
    "statistics of another dtype": lambda c: setattr(c.statistics, "dtype", np.float32),
    "weights of another shape": lambda c: setattr(c.weights, "shape", (1, 8)),
    "weights of another dtype": lambda c: setattr(c.weights, "dtype", np.float32),
    "the residual in another dtype": lambda c: (
        setattr(c.saved, "dtype", np.float16), c.saved.resize((8, 5), refcheck=False)),  # type: ignore[union-attr]
    "x in another dtype": lambda c: (setattr(c.x, "dtype", np.float16), c.x.resize((8, 5), refcheck=False)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")  # NumPy 2.5 still does it
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_arrays_of_a_context_that_have_another_form_are_not_read(
    change: Callable[[xhat.Context], Any],
) -> None:
    x, dy, residual = np.random.default_rng(0).normal(size=(3, 8, 5)).astype(np.float32)
    _, context = xhat.batch_norm(
        x.copy(), residual=residual.copy(), activation="silu", mask=np.ones((8, 1)) * 2
    )
    change(context)
    for backward in (xhat.batch_norm_backward, xhat.gradient_paths):
        with pytest.raises(ContextError, match="other shapes or dtypes"):
            backward(dy.astype(context.x.dtype), context)


def test_a_context_without_what_it_had_saved_has_no_gradient() -> None:
    x = np.random.default_rng(0).normal(size=(8, 5))
    _, context = xhat.batch_norm(x, residual=x.copy(), activation="relu")
    with pytest.raises(ContextError, match="other shapes or dtypes"):
        xhat.batch_norm_backward(x, context._replace(saved=None))


@pytest.mark.parametrize("strides", [(1_000_000, 1, 1), (-5, 1, 1), (5, 1_000_000, 1), (2**62, 2**62, 2**62)])
def test_a_plan_with_other_strides_does_not_leave_its_arrays(strides: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(8, 5))
    _, context = xhat.batch_norm(x)
    with pytest.raises(ContextError, match="x reaches beyond its memory"):
        xhat.batch_norm_backward(x, context._replace(plan=context.plan._replace(strides=strides)))


@pytest.mark.parametrize("shape", [(8, 500, 1), (800, 5, 1), (8, 5, 100), (-8, 5, -1), (2**62, 1, 1)])
def test_a_plan_with_another_view_does_not_leave_its_arrays(shape: tuple[int, int, int]) -> None:
    x = np.random.default_rng(0).normal(size=(8, 5))
    _, context = xhat.batch_norm(x, mask=np.ones((8, 1)) * 2)
    plan = context.plan._replace(view=context.plan.view._replace(shape=shape))
    for weights in (context.weights, None):
        with pytest.raises(ContextError):
            xhat.batch_norm_backward(x, context._replace(plan=plan, weights=weights))


def test_a_plan_of_another_activation_reads_nothing_that_is_missing() -> None:
    x = np.random.default_rng(0).normal(size=(8, 5))
    _, context = xhat.batch_norm(x)
    _, other = xhat.batch_norm(x, residual=x.copy(), activation="silu")
    changed = context.plan._replace(activation_grad=other.plan.activation_grad)
    with pytest.raises(ContextError, match="an array is missing"):
        xhat.batch_norm_backward(x, context._replace(plan=changed))


@pytest.mark.parametrize("field", ["x", "statistics", "count", "plan"])
def test_a_context_without_one_of_its_fields_is_refused(field: str) -> None:
    x = np.random.default_rng(0).normal(size=(8, 5))
    _, context = xhat.batch_norm(x)
    for backward in (xhat.batch_norm_backward, xhat.gradient_paths):
        with pytest.raises(ContextError):
            backward(x, context._replace(**{field: None}))


def test_no_change_of_any_field_ends_the_process_or_leaves_a_bare_error() -> None:
    program = Path(__file__).parent / "fuzz_changed.py"
    environment = {**os.environ, "XHAT_FUZZ_SECONDS": "30"}
    found = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
    assert found.returncode == 0, found.stdout + found.stderr
