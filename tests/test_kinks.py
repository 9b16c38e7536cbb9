"""The backward of relu tells its sides by one number of x a channel: exactly those that the forward pass saw."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import xhat
from xhat import ops

LAYOUTS = {"lanes": ((4, 12, 700), 1), "columns": ((501, 12), 1), "short runs": ((64, 12, 5), 1)}
DTYPES = {d.name: d for d in map(np.dtype, (np.float64, np.float32, np.float16, ml_dtypes.bfloat16))}
GAMMA = np.array([1, -1, 0.3, -7, 1e-6, -1e-6, 0.0, 2, 1, 1, -3, 1])
BETA = np.array([0, 0, 1, 0.5, 1e-3, -1e-3, 1, -4, 50, -50, 1e-20, 1e-3])


class NearTheKink:
    """Many numbers within a few units in the last place of where pre changes its sign, and statistics that stay."""

    def __init__(self, layout: str, dtype: np.dtype[Any], offset: float) -> None:
        shape, self.axis = LAYOUTS[layout]
        self.others = tuple(a for a in range(len(shape)) if a != self.axis)
        rng = np.random.default_rng(0)
        x = (rng.normal(size=shape) + offset).astype(dtype)
        moments = xhat.moments(x, axis=self.axis)
        self.mean, self.var = moments.mean, moments.var()
        kinks = self.mean - BETA / np.where(GAMMA == 0, np.inf, GAMMA) * np.sqrt(self.var + 1e-5)
        spacing = np.abs(kinks) * np.finfo(np.float64 if dtype == np.float64 else np.float32).eps
        there = np.expand_dims(kinks, self.others) + rng.integers(-8, 9, shape) * np.expand_dims(
            spacing, self.others
        )
        self.x = np.where(rng.random(shape) < 0.5, there, x.astype(np.float64)).astype(dtype)

    def above(self, dtype: Any) -> NDArray[np.intp]:
        """How many numbers of each channel lie above the kink, as the forward pass has it in this arithmetic."""
        y = xhat.normalize(self.x.astype(dtype), self.mean, self.var, GAMMA, BETA, axis=self.axis)
        return np.asarray((y > 0).sum(axis=self.others))


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.25)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_sides_are_those_of_the_forward_pass(
    layout: str, dtype: str, offset: float, activation: Any
) -> None:
    near = NearTheKink(layout, DTYPES[dtype], offset)
    above = near.above(np.float64 if dtype == "float64" else np.float32)
    _, context = ops.normalize_with_context(
        near.x, near.mean, near.var, GAMMA, BETA, axis=near.axis, activation=activation
    )
    slope = 0.0 if activation == "relu" else 0.25
    expected = above + slope * (near.x.size // 12 - above)
    assert np.array_equal(xhat.batch_norm_backward(np.ones_like(near.x), context).dbeta, expected)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_so_near_that_rounding_tells_the_sides(layout: str, offset: float) -> None:
    """The neighbour of the test above: a kink that were found in double would not be the one of float32."""
    near = NearTheKink(layout, DTYPES["float32"], offset)
    assert (near.above(np.float32) != near.above(np.float64)).any()


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
