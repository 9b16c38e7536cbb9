"""Uncentered sums of float32 are as accurate as centered ones: near zero, far from it, and where they are given up."""

from typing import Any

import numpy as np
import oracle
import pytest
from numpy.typing import NDArray

import xhat

LAYOUTS = {
    "lanes": ((6, 5, 700), 1),
    "short runs of many": ((40, 5, 67), 1),
    "a few long runs": ((2, 5, 30011), 1),
    "columns": ((977, 5), 1),
    "wide rows": ((61, 150), 1),
    "columns of short runs": ((64, 5, 7), 1),
    "channels last": ((8, 9, 9, 19), -1),
}
# Uncentered sums are used up to sqrt(15) = 3.87 deviations from zero.
DISTANCES = [0.0, 1.0, 3.5, 3.87, 3.88, 4.0, 30.0, 1e4, 1e6]


def on_axis(values: NDArray[np.float64], shape: tuple[int, ...], axis: int) -> NDArray[np.float64]:
    return values.reshape([-1 if a == axis % len(shape) else 1 for a in range(len(shape))])


def batch(layout: str, distance: float, scale: float = 1.0) -> tuple[NDArray[np.float32], int]:
    """Channels whose mean is `distance` deviations from zero; every second one is near zero."""
    shape, axis = LAYOUTS[layout]
    channels = shape[axis]
    x = np.random.default_rng(0).normal(size=shape)
    x += on_axis(distance * (np.arange(channels) % 2), shape, axis)
    return (scale * x).astype(np.float32), axis


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics(layout: str, distance: float) -> None:
    x, axis = batch(layout, distance)
    expected = oracle.forward(x, axis=axis)
    y, context = xhat.batch_norm(x, axis=axis)
    spread = np.sqrt(expected.var.astype(float))
    assert np.all(np.abs(context.mean - expected.mean) <= 2e-14 * (spread + np.abs(expected.mean)))
    # Four bits of a double may cancel; pieces are merged by their means, which have a relative error of 1e-16.
    assert np.all(np.abs(context.var - expected.var) <= (1e-13 + 1e-18 * distance) * expected.var)
    assert np.abs(y - expected.y).max() <= 2e-6


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.1), "silu"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_parameters(layout: str, distance: float, activation: Any) -> None:
    x, axis = batch(layout, distance)
    dy = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    channels = x.shape[axis]
    gamma, beta = np.linspace(0.5, 2, channels), np.linspace(-1, 1, channels)
    _, context = xhat.batch_norm(x, gamma, beta, axis=axis, activation=activation)
    got = xhat.batch_norm_backward(dy, context)
    expected = oracle.backward(dy, x, gamma, beta, axis=axis, activation=activation)
    # Without an activation only the mean is rounded before the sums.
    most = 1e-13 + 1e-15 * distance if activation is None else 1e-6
    assert oracle.relative_l2(got.dgamma, expected.dgamma) <= most
    assert oracle.relative_l2(got.dbeta, expected.dbeta) <= most
    assert oracle.relative_l2(got.dx, expected.dx) <= 1e-6


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e18, 1e30])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_squares_far_beyond_float32(layout: str, scale: float) -> None:
    x, axis = batch(layout, 2.0, scale)
    expected = oracle.forward(x, axis=axis, eps=1e-90)
    _, context = xhat.batch_norm(x, axis=axis, eps=1e-90)
    assert np.all(np.abs(context.var - expected.var) <= 1e-13 * expected.var)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_constant_channel_has_no_variance(layout: str) -> None:
    x, axis = batch(layout, 0.0)
    np.moveaxis(x, axis, 0)[1] = 0.1
    np.moveaxis(x, axis, 0)[2] = 0.0
    y, context = xhat.batch_norm(x, axis=axis)
    assert context.var[1] == context.var[2] == 0
    assert not np.moveaxis(y, axis, 0)[1:3].any()
    gradients = xhat.batch_norm_backward(x, context)
    assert np.isfinite(gradients.dx).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nonfinite_elements_affect_their_own_channel_only(layout: str, number: float) -> None:
    x, axis = batch(layout, 0.0)
    clean, _ = xhat.batch_norm(x, axis=axis)
    spoilt = np.moveaxis(x, axis, 0)
    spoilt[(1, *(0,) * (x.ndim - 1))] = number
    y, context = xhat.batch_norm(x, axis=axis)
    others = [c for c in range(x.shape[axis]) if c != 1]
    assert np.array_equal(np.moveaxis(y, axis, 0)[others], np.moveaxis(clean, axis, 0)[others])
    assert np.isnan(context.var[1])
    dx = xhat.batch_norm_backward(clean, context).dx
    assert np.isfinite(np.moveaxis(dx, axis, 0)[others]).all()
