"""The backward pass of relu recomputes the sign of pre from x, with exactly the result of the forward pass."""

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


class NearTheZeroOfPre:
    """Many elements within a few units in the last place of the x at which pre is 0, with constant statistics."""

    def __init__(self, layout: str, dtype: np.dtype[Any], offset: float) -> None:
        shape, self.axis = LAYOUTS[layout]
        self.others = tuple(a for a in range(len(shape)) if a != self.axis)
        rng = np.random.default_rng(0)
        x = (rng.normal(size=shape) + offset).astype(dtype)
        moments = xhat.moments(x, axis=self.axis)
        self.mean, self.var = moments.mean, moments.var()
        zeros = self.mean - BETA / np.where(GAMMA == 0, np.inf, GAMMA) * np.sqrt(self.var + 1e-5)
        spacing = np.abs(zeros) * np.finfo(np.float64 if dtype == np.float64 else np.float32).eps
        there = np.expand_dims(zeros, self.others) + rng.integers(-8, 9, shape) * np.expand_dims(
            spacing, self.others
        )
        self.x = np.where(rng.random(shape) < 0.5, there, x.astype(np.float64)).astype(dtype)

    def above(self, dtype: Any) -> NDArray[np.intp]:
        """How many elements of each channel have pre > 0 in a forward pass in this arithmetic."""
        y = xhat.normalize(self.x.astype(dtype), self.mean, self.var, GAMMA, BETA, axis=self.axis)
        return np.asarray((y > 0).sum(axis=self.others))


@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.25)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backward_pass_has_the_signs_of_the_forward_pass(
    layout: str, dtype: str, offset: float, activation: Any
) -> None:
    near = NearTheZeroOfPre(layout, DTYPES[dtype], offset)
    above = near.above(np.float64 if dtype == "float64" else np.float32)
    _, context = ops.normalize_with_context(
        near.x, near.mean, near.var, GAMMA, BETA, axis=near.axis, activation=activation
    )
    slope = 0.0 if activation == "relu" else 0.25
    expected = above + slope * (near.x.size // 12 - above)
    assert np.array_equal(xhat.batch_norm_backward(np.ones_like(near.x), context).dbeta, expected)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_and_float64_differ_on_these_elements(layout: str, offset: float) -> None:
    """The neighbour of the test above: a pre that is computed in double would fail it."""
    near = NearTheZeroOfPre(layout, DTYPES["float32"], offset)
    assert (near.above(np.float32) != near.above(np.float64)).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nonfinite_coefficients(layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    gamma, beta = np.ones(12), np.zeros(12)
    gamma[0], beta[1], beta[2], beta[3] = np.nan, np.nan, np.inf, -np.inf
    _, context = xhat.batch_norm(x, gamma, beta, axis=axis, activation="relu")
    dbeta = xhat.batch_norm_backward(np.ones_like(x), context).dbeta
    count = x.size // 12
    assert dbeta[:4].tolist() == [count, count, count, 0]  # a pre of NaN is not below 0
    assert ((dbeta[4:] > 0.3 * count) & (dbeta[4:] < 0.7 * count)).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_slope_that_rounds_to_zero_gives_zero_for_infinite_gradients(layout: str) -> None:
    shape, axis = LAYOUTS[layout]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y, context = xhat.batch_norm(x, None, np.zeros(12), axis=axis, activation=("leaky_relu", 1e-60))
    dy = np.where(y > 0, np.float32(1), np.float32(np.inf))
    others = tuple(a for a in range(x.ndim) if a != axis)
    assert np.array_equal(xhat.batch_norm_backward(dy, context).dbeta, (y > 0).sum(axis=others))


def sides(dbeta: NDArray[Any], slope: float, count: int) -> NDArray[Any]:
    """How many elements of a channel were above the kink, from the sum of the gradients where dy is 1."""
    return (dbeta - slope * count) / (1 - slope)


def test_another_channels_gradient_changes_no_side() -> None:
    x = np.ones((8, 2, 4), np.float32)
    x[::2] = -1
    beta = np.array([1 / np.sqrt(1 + 1e-5) + 1e-9, 0.0])  # in float, pre of -1 is 0
    dy = np.ones_like(x)
    dy[:, 1] = 1e-33 * np.random.default_rng(0).normal(size=(8, 4))  # its coefficients do not fit in float
    y, context = xhat.batch_norm(x, None, beta, activation="relu")
    assert y[0, 0, 0] == 0
    dx = xhat.batch_norm_backward(dy, context).dx
    assert dx[0, 0, 0] == np.float32(-4.999925e-06)
    assert abs(dx[:, 0].sum()) < 1e-6


# What may lead one pass to the float64 fallback, and not the other: strides, another channel's coefficients, dy, w.
@pytest.mark.parametrize(
    "why", ["x", "dy", "out", "gamma of another channel", "dy of another channel", "weights"]
)
@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.25)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fallback_of_either_pass_has_the_sides_of_the_other(
    layout: str, dtype: str, offset: float, activation: Any, why: str
) -> None:
    near = NearTheZeroOfPre(layout, DTYPES[dtype], offset)
    x, dy, gamma = near.x, np.ones_like(near.x), GAMMA.copy()
    channel = (slice(None), 0)
    if why == "gamma of another channel":
        gamma[0] = 1e-35
    if why == "dy of another channel":
        dy[channel] = np.asarray(1e-7 if dtype == "float16" else 1e-34).astype(dy.dtype)
    if why == "x":
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    if why == "dy":
        dy = np.repeat(dy, 2, axis=-1)[..., ::2]
    wide = "float64" if dtype == "float64" else "float32"
    weights = (
        np.full([n if a != near.axis else 1 for a, n in enumerate(x.shape)], 1e-32)
        if why == "weights"
        else None
    )
    parameters = (gamma, BETA)
    if weights is None:
        out = np.repeat(np.empty_like(x), 2, axis=-1)[..., ::2] if why == "out" else None
        _, context = ops.normalize_with_context(
            x, near.mean, near.var, *parameters, axis=near.axis, activation=activation, out=out
        )
        mean, var = near.mean, near.var
    else:
        _, context = xhat.batch_norm(x, *parameters, axis=near.axis, activation=activation, mask=weights)
        mean, var = context.mean, context.var
    y = xhat.normalize(near.x.astype(wide), mean, var, *parameters, axis=near.axis)
    slope = 0.0 if activation == "relu" else 0.25
    dbeta = xhat.batch_norm_backward(dy, context).dbeta
    assert dbeta is not None
    others = slice(1, None)  # but for the channel that led there
    count = x.size // 12
    assert np.array_equal(sides(dbeta, slope, count)[others], (y > 0).sum(axis=near.others)[others])
