"""Sums of 16-bit formats, whose terms are added in float32 by eights: accurate for all data, in double if need be."""

import ml_dtypes
import numpy as np
import oracle
import pytest
from numpy.typing import NDArray

import xhat

Array = NDArray[np.float64]

LAYOUTS = {
    "lanes": ((6, 4, 700), 1),
    "a few long runs": ((2, 4, 3001), 1),
    "columns": ((977, 4), 1),
    "columns of short runs": ((64, 4, 5), 1),
    "one batch of few": ((5, 4), 1),
}
DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def normal(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def spoilt(shape: tuple[int, ...]) -> Array:
    """Outliers where a sum may take its shift from, in three channels of four."""
    x = normal(shape)
    x[0, 0], x[0, 1] = 3e4, -3e4
    x[::2, 2] += 2e4
    return x


def sparse(shape: tuple[int, ...]) -> Array:
    return np.where(np.random.default_rng(1).random(shape) < 0.02, normal(shape), 0.0)


def alternating(shape: tuple[int, ...], size: float) -> Array:
    """Elements that cancel one another, all of the same magnitude."""
    return size * (-1.0) ** np.indices(shape).sum(axis=0)


DATA = {
    "normal": normal,
    "far from zero": lambda shape: normal(shape) * 0.5 + 100,
    "outliers": spoilt,
    "sparse": sparse,
    "constant": lambda shape: np.full(shape, 0.7),
    "zero": np.zeros,
    "tiny": lambda shape: normal(shape) * 1e-7,
    "cancelling": lambda shape: alternating(shape, 1e-5),
}
ONLY_BFLOAT16 = {
    "below float32's squares": lambda shape: normal(shape) * 1e-30,
    "cancelling there": lambda shape: alternating(shape, 1e-30),
    "above float32's squares": lambda shape: normal(shape) * 1e25,
}
CASES = [(name, make, dtype) for name, make in DATA.items() for dtype in DTYPES] + [
    (name, make, "bfloat16") for name, make in ONLY_BFLOAT16.items()
]


@pytest.mark.parametrize(("name", "make", "dtype"), CASES, ids=[f"{n}, {d}" for n, _, d in CASES])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_statistics(layout: str, name: str, make: object, dtype: str) -> None:
    shape, axis = LAYOUTS[layout]
    x = make(shape).astype(DTYPES[dtype])  # type: ignore[operator]
    expected = oracle.forward(x, axis=axis, eps=1e-30)
    _, context = xhat.batch_norm(x, axis=axis, eps=1e-30)
    spread = np.sqrt(expected.var.astype(float))
    assert np.all(np.abs(context.mean - expected.mean) <= 1e-6 * spread + 1e-14 * np.abs(expected.mean))
    assert np.all(np.abs(context.var - expected.var) <= 1.1e-6 * expected.var)
    if name in ("constant", "zero"):
        assert np.array_equal(context.var, np.zeros(4))


@pytest.mark.parametrize(("size", "scale"), [(1.0, 1.0), (1e-36, 1e-3), (1e30, 1e10), (0.0, 1.0)])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_sums(layout: str, activation: str | None, size: float, scale: float) -> None:
    """Each within 1e-6 of the sum of its terms' magnitudes; also without gradients, and in constant channels."""
    shape, axis = LAYOUTS[layout]
    x = normal(shape) * scale
    x[:, 1] = 0.25
    dy = normal(shape, 1) * size
    dy[:, 2] = 0
    x, dy = x.astype(ml_dtypes.bfloat16), dy.astype(ml_dtypes.bfloat16)
    ones = np.ones(4)
    _, context = xhat.batch_norm(x, ones, ones, axis=axis, activation=activation)
    grads = xhat.batch_norm_backward(dy, context)
    expected = oracle.backward(dy, x, ones, ones, axis=axis, activation=activation)
    terms = np.abs(dy.astype(float)).sum(axis=tuple(a for a in range(x.ndim) if a != axis))
    assert np.all(np.abs(grads.dbeta - expected.dbeta) <= 1e-6 * terms)
    assert np.all(np.abs(grads.dgamma - expected.dgamma) <= 4e-6 * terms)
    assert grads.dbeta[2] == grads.dgamma[2] == 0
    if size and activation is None:
        assert np.all(grads.dgamma[[0, 3]] != 0)


def test_standalone_moments_are_accurate_to_float64() -> None:
    """They may be merged with others later."""
    for shape, axis in LAYOUTS.values():
        x = normal(shape).astype(np.float16)
        found, expected = xhat.moments(x, axis=axis), oracle.moments(x, axis=axis)
        assert oracle.worst(found.mean, expected.mean) < 1e-14
        assert np.all(np.abs(found.m2 / expected.m2 - 1) < 1e-13)
