"""The backward of relu tells its sides by one number of x a channel: exactly those that the forward pass saw."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import xhat

LAYOUTS = {"lanes": ((4, 12, 700), 1), "columns": ((501, 12), 1), "short runs": ((64, 12, 5), 1)}
DTYPES = {d.name: d for d in map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))}
GAMMA = np.array([1, -1, 0.3, -7, 1e-6, -1e-6, 0.0, 2, 1, 1, -3, 1])
BETA = np.array([0, 0, 1, 0.5, 1e-3, -1e-3, 1, -4, 50, -50, 1e-20, 1e-3])


def near_the_kink(layout: str, dtype: np.dtype[Any], offset: float) -> tuple[NDArray[Any], int]:
    """Many numbers within a few units in the last place of where pre changes its sign."""
    shape, axis = LAYOUTS[layout]
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) + offset).astype(dtype)
    _, context = xhat.batch_norm(x, axis=axis)
    with np.errstate(divide="ignore"):
        kinks = context.mean - BETA / np.where(GAMMA == 0, np.inf, GAMMA) * np.sqrt(context.var + 1e-5)
    spacing = np.abs(kinks) * np.finfo(np.float32).eps + 1e-12
    steps = rng.integers(-8, 9, size=shape)
    there = kinks.reshape(-1, *(1,) * (len(shape) - 2)) + steps * spacing.reshape(
        -1, *(1,) * (len(shape) - 2)
    )
    chosen = rng.random(shape) < 0.5
    return np.where(chosen, there, x.astype(np.float64)).astype(dtype), axis


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.25)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sides_are_those_of_the_forward_pass(
    layout: str, dtype: str, offset: float, activation: Any
) -> None:
    x, axis = near_the_kink(layout, DTYPES[dtype], offset)
    _, plain = xhat.batch_norm(x, axis=axis)  # statistics that no later call changes
    y = xhat.normalize(x, plain.mean, plain.var, GAMMA, BETA, axis=axis)
    _, context = xhat.batch_norm(x, GAMMA, BETA, axis=axis, activation=activation)
    assert np.array_equal(context.mean, plain.mean)
    dy = np.ones(x.shape, x.dtype)
    others = tuple(a for a in range(x.ndim) if a != axis)
    above = (np.asarray(y, np.float64) > 0).sum(axis=others)
    slope = 0.0 if activation == "relu" else 0.25
    expected = above + slope * (x.size // 12 - above)
    assert np.array_equal(xhat.batch_norm_backward(dy, context).dbeta, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_factors_that_are_no_numbers(layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    gamma, beta = np.ones(12), np.zeros(12)
    gamma[0], beta[1], beta[2], beta[3] = np.nan, np.nan, np.inf, -np.inf
    _, context = xhat.batch_norm(x, gamma, beta, axis=axis, activation="relu")
    dbeta = xhat.batch_norm_backward(np.ones_like(x), context).dbeta
    count = x.size // 12
    assert dbeta[:4].tolist() == [count, count, count, 0]  # a number that is none is not below the kink
    assert ((dbeta[4:] > 0.3 * count) & (dbeta[4:] < 0.7 * count)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_slope_below_float32_lets_nothing_pass_not_even_infinity(layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y, context = xhat.batch_norm(x, None, np.zeros(12), axis=axis, activation=("leaky_relu", 1e-60))
    dy = np.where(y > 0, np.float32(1), np.float32(np.inf))
    others = tuple(a for a in range(x.ndim) if a != axis)
    assert np.array_equal(xhat.batch_norm_backward(dy, context).dbeta, (y > 0).sum(axis=others))
