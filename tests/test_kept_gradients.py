"""Behind silu the sums leave their gradients where a result will be, and the map finds them there: in place or apart,
with a residual's gradient or without, small or large, they are those of the oracle."""

from typing import Any

import numpy as np
import oracle
import pytest
from conftest import DTYPES

import xhat
from xhat import ops

SHAPES = {
    "lanes": ((6, 11, 331), 1),
    "lanes, shared by a team": ((5, 3, 117, 131), 1),
    "columns": ((509, 13), 1),
    "columns, wide": ((67, 1031), 1),
    "columns, shared by a team": ((4099, 67), -1),
    "short runs": ((31, 701, 7), 1),
}
TOLERANCES = {"float64": 1e-13, "float32": 1e-6, "float16": 2e-3, "bfloat16": 1.5e-2}


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("where", SHAPES)
def test_gradients_behind_silu_in_place_and_apart(
    where: str, residual: bool, masked: bool, name: str
) -> None:
    (shape, axis), dtype = SHAPES[where], DTYPES[name]
    random = np.random.default_rng(0)
    x, dy, added = (random.normal(size=shape).astype(dtype) for _ in range(3))
    options: dict[str, Any] = {"axis": axis, "residual": added if residual else None}
    if masked:
        axes = [1 if a == axis % x.ndim else n for a, n in enumerate(shape)]
        options["mask"] = random.uniform(0, 1, axes)
    expected = oracle.backward(dy, x, activation="silu", **options)
    _, context = xhat.batch_norm(x, activation="silu", **options)
    apart = xhat.batch_norm_backward(dy, context)
    worst = TOLERANCES[name]
    assert oracle.relative_l2(apart.dx, expected.dx) < worst
    if residual:
        assert oracle.relative_l2(apart.dresidual, expected.dpre) < worst
    assert np.array_equal(xhat.batch_norm_backward(dy, context).dx, apart.dx)  # dy is as it was
    over = dy.copy()
    place = (over, np.empty_like(x)) if residual else over
    within = xhat.batch_norm_backward(over, context, out=place)
    assert within.dx is over
    assert np.array_equal(within.dx, apart.dx)
    assert not residual or np.array_equal(within.dresidual, apart.dresidual)


@pytest.mark.parametrize("name", ["float64", "float32"])
@pytest.mark.parametrize("where", SHAPES)
def test_factors_beyond_float_behind_silu(where: str, name: str) -> None:
    """The sums, or the map alone, go the widened way."""
    (shape, axis), dtype = SHAPES[where], DTYPES[name]
    random = np.random.default_rng(0)
    x = (random.normal(size=shape) * 1e-30).astype(dtype)
    for scale in (1e-4, 1e4):
        dy = (random.normal(size=shape) * scale).astype(dtype)
        _, context = xhat.batch_norm(x, axis=axis, eps=1e-62, activation="silu")
        expected = oracle.backward(dy, x, axis=axis, eps=1e-62, activation="silu")
        assert oracle.relative_l2(xhat.batch_norm_backward(dy, context).dx, expected.dx) < 1e-6


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.1), "silu"], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("where", SHAPES)
def test_nothing_goes_through_constant_statistics(
    where: str, residual: bool, activation: Any, name: str
) -> None:
    """dx is scale g alone, and an x that is no number harms no gradient that does not ask for it."""
    (shape, axis), dtype = SHAPES[where], DTYPES[name]
    random = np.random.default_rng(0)
    x, dy, added = (random.normal(size=shape).astype(dtype) for _ in range(3))
    channels = shape[axis]
    fixed = random.normal(size=channels), random.uniform(0.5, 2, channels)
    gamma, beta = random.uniform(0.5, 2, (2, channels)).astype(np.float64)
    options: dict[str, Any] = {
        "axis": axis,
        "activation": activation,
        "residual": added if residual else None,
    }
    dy[np.abs(oracle.forward(x, gamma, beta, fixed=fixed, **options).pre) < 0.05] = (
        0  # rounding may decide the side
    )
    expected = oracle.backward(dy, x, gamma, beta, fixed=fixed, **options)
    _, context = ops.normalize_with_context(x, *fixed, gamma, beta, **options)
    dx = xhat.batch_norm_backward(dy, context).dx
    assert oracle.relative_l2(dx, expected.dx) < TOLERANCES[name]
    if activation is None:
        x[...] = np.nan
        assert np.array_equal(xhat.batch_norm_backward(dy, context).dx, dx)
