"""Contexts whose arrays have another shape or dtype than in the forward pass: an error, and no memory beyond them."""

from collections.abc import Callable
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
