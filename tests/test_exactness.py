"""How far from the truth, by measure: the table of accuracy that the library promises.

float32 against the oracle: y within 2e-6 absolute for data of unit variance at any offset, the variance and
every gradient within 1e-6 relative; 16-bit outputs within one unit in the last place of the rounded truth.
"""

from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, DTYPES, Array

import xhat

OFFSETS = [0.0, 1e2, 1e4, 1e6]
# Enough values a channel for a naive sum to lose its digits.
LAYOUTS = {"NCHW": ((16, 5, 37, 41), 1), "NHWC": ((16, 37, 41, 5), -1), "(N, C)": ((20011, 5), 1)}


def data(
    where: str, offset: float, outliers: bool, seed: int = 3
) -> tuple[Array, Array, dict[str, Any], Array]:
    """x of about unit variance around the offset, dy, the parameters and the axis."""
    shape, axis = LAYOUTS[where]
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    if outliers:  # the value that a one-pass method takes as its shift
        x[(0,) * (x.ndim - 1)] = 50
        x.flat[0] = 50
    x = (x + offset).astype(np.float32)
    dy = rng.normal(size=shape).astype(np.float32)
    parameters = {
        "gamma": rng.uniform(0.5, 1.5, 5).astype(np.float32),
        "beta": rng.normal(size=5).astype(np.float32),
    }
    return x, dy, {"axis": axis}, np.stack(list(parameters.values()))


every_row = pytest.mark.parametrize(
    ("where", "offset", "outliers"), list(product(LAYOUTS, OFFSETS, [False, True]))
)  # of the table of accuracy


@every_row
def test_y_and_the_variance(where: str, offset: float, outliers: bool) -> None:
    x, _, axis, _ = data(where, offset, outliers)
    expected = oracle.forward(x, **axis)
    y, context = xhat.batch_norm(x, **axis)
    inside = np.abs(expected.y) < 10  # an outlier of 50 keeps the relative error, of its own size
    assert oracle.worst(y[inside], expected.y[inside]) <= 2e-6
    assert oracle.worst(y[~inside], expected.y[~inside]) <= 1e-5
    assert float(np.max(np.abs(context.var / expected.var - 1))) <= 1e-6


@every_row
def test_the_gradients(where: str, offset: float, outliers: bool) -> None:
    x, dy, axis, (gamma, beta) = data(where, offset, outliers)
    for correction in (0, 1):
        _, context = xhat.batch_norm(x, gamma, beta, **axis, correction=correction)
        grads = xhat.batch_norm_backward(dy, context)
        expected = oracle.backward(dy, x, gamma, beta, **axis, correction=correction)
        assert oracle.relative_l2(grads.dx, expected.dx) <= 1e-6
        assert oracle.relative_l2(grads.dgamma, expected.dgamma) <= 1e-6
        assert oracle.relative_l2(grads.dbeta, expected.dbeta) <= 1e-6


def test_the_table_would_catch_a_naive_variance() -> None:
    """E[x^2] - E[x]^2 in float32, which libraries do use, misses the bound by orders of magnitude."""
    x, _, axis, _ = data("(N, C)", 1e2, outliers=False)
    naive = (x**2).mean(axis=0) - x.mean(axis=0) ** 2
    assert float(np.max(np.abs(naive / oracle.forward(x, **axis).var - 1))) > 1e-4


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1234.567, -7e9, 1e-30, 1 / 3])
@pytest.mark.parametrize("where", LAYOUTS)
def test_a_constant_channel_gives_exactly_beta_and_finite_gradients(
    where: str, value: float, name: str
) -> None:
    dtype = DTYPES[name]
    with np.errstate(over="ignore"):
        value = float(np.asarray(value).astype(dtype).astype(np.float64))
    value = value if np.isfinite(value) else float(ml_dtypes.finfo(dtype).max)
    x, dy, axis, (gamma, beta) = data(where, 0, outliers=False)
    x, dy, gamma, beta = (a.astype(dtype) for a in (x, dy, gamma, beta))
    index: list[Any] = [slice(None)] * x.ndim
    index[axis["axis"]] = 2
    x[tuple(index)] = value
    y, context = xhat.batch_norm(x, gamma, beta, **axis)
    assert (y[tuple(index)] == beta[2]).all()
    assert (context.mean[2], context.var[2]) == (value, 0)
    grads = xhat.batch_norm_backward(dy, context)
    assert all(np.isfinite(g.astype(np.float64)).all() for g in grads if g is not None)
    assert grads.dgamma[2] == 0


@pytest.mark.parametrize("value", [1234.567, 1e5 + 0.1, 1 / 3])
@pytest.mark.parametrize("count", [2, 3, 7, 1000, 12345])
def test_a_constant_channel_of_any_length(count: int, value: float) -> None:
    """Also in float64, where the mean of equal numbers does not round to the number by itself."""
    for dtype in (np.float64, np.float32):
        for shape, axis in (((count, 1), 1), ((1, count), 0), ((count, 3), 1), ((1, 3, count), 1)):
            y, context = xhat.batch_norm(
                np.full(shape, value, dtype), beta=np.full(shape[axis], 0.25, dtype), axis=axis
            )
            assert (y == 0.25).all()
            assert (context.var == 0).all()


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("scale", [1e30, 1e-12, 1e-30, 1e-38, 1e-41])
@pytest.mark.parametrize("where", LAYOUTS)
def test_large_small_and_subnormal_values(where: str, scale: float, offset: float) -> None:
    """float32's range from its top to its subnormals, with eps small beside the variance and not."""
    x, dy, axis, (gamma, beta) = data(where, offset, outliers=False)
    x = (x.astype(np.float64) * scale).astype(np.float32)
    for eps in (1e-5, max(1e-5 * scale**2, 1e-300)):
        expected = oracle.forward(x, gamma, beta, **axis, eps=eps)
        y, context = xhat.batch_norm(x, gamma, beta, **axis, eps=eps)
        assert oracle.worst(y, expected.y) <= 2e-6
        assert float(np.max(np.abs(context.var / expected.var - 1))) <= 1e-6
        gradients, grads = (
            oracle.backward(dy, x, gamma, beta, **axis, eps=eps),
            xhat.batch_norm_backward(dy, context),
        )
        assert oracle.relative_l2(grads.dgamma, gradients.dgamma) <= 1e-6
        limit = float(np.finfo(np.float32).max)
        if float(np.max(np.abs(gradients.dx))) < limit:  # else no float32 could hold it
            subnormal = float(np.finfo(np.float32).smallest_subnormal)
            assert oracle.worst(grads.dx, gradients.dx) <= max(
                2e-6 * float(np.max(np.abs(gradients.dx))), subnormal
            )


@pytest.mark.parametrize("scale", [1e-150, 1e100, 1e150])
def test_float64_as_far_as_its_variance_reaches(scale: float) -> None:
    x = np.random.default_rng(5).normal(size=(101, 3)) * scale
    y, _ = xhat.batch_norm(x, eps=1e-300)
    assert oracle.worst(y, oracle.forward(x, eps=1e-300).y) <= 1e-14


def off_by(got: Array, expected: Array) -> float:
    """How far from the rounded truth beyond one unit of the last place; `got` is in 16 bits."""
    rounded = expected.astype(np.float64).astype(got.dtype)
    unit = oracle.wide(np.spacing(np.abs(rounded)))
    return float(np.max(np.abs(oracle.wide(got) - oracle.wide(rounded)) - unit, initial=0))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("where", ["NCHW", "NHWC"])
def test_sixteen_bits_within_one_unit_of_the_rounded_truth(
    where: str, offset: float, activation: Any, name: str
) -> None:
    """Next to 0, where terms of size 1 cancel, the bound is float32's own: 2e-6."""
    dtype = DTYPES[name]
    x, dy, axis, (gamma, beta) = data(where, offset, outliers=False)
    x, dy = x.astype(dtype), dy.astype(dtype)
    for wide in (gamma, gamma.astype(dtype)):
        expected = oracle.forward(x, wide, beta, **axis, activation=activation)
        y, context = xhat.batch_norm(x, wide, beta, **axis, activation=activation)
        small = np.abs(expected.y) < 2**-7
        assert off_by(y[~small], expected.y[~small]) <= 0
        assert off_by(y[small], expected.y[small]) <= 2e-6
        dy[np.abs(expected.pre) < 1e-4] = 0
        grads = xhat.batch_norm_backward(dy, context)
        gradients = oracle.backward(dy, x, wide, beta, **axis, activation=activation)
        small = np.abs(gradients.dx) < 2**-7
        assert off_by(grads.dx[~small], gradients.dx[~small]) <= 0
        assert off_by(grads.dx[small], gradients.dx[small]) <= 2e-6
        if wide.dtype == dtype:
            assert off_by(grads.dgamma, gradients.dgamma) <= 0
        else:
            assert oracle.relative_l2(grads.dgamma, gradients.dgamma) <= 1e-6


def finite(a: Array) -> Array:
    """Its numbers. A cast of a signalling NaN raises the flag of an invalid operation on some processors."""
    with np.errstate(invalid="ignore"):
        return a[np.isfinite(a.astype(np.float32))]


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_every_number_of_a_dtype_goes_through_unchanged(name: str) -> None:
    """normalize with mean 0 and a variance that makes rstd 1: load and store lose nothing."""
    dtype = DTYPES[name]
    every = np.arange(2**16, dtype=np.uint16)
    x = every.view(dtype) if dtype.itemsize == 2 else (every.astype(np.uint32) << 16 | 0x1234).view(dtype)
    x = finite(x).reshape(-1, 1)
    y = xhat.normalize(x, np.zeros(1), np.array([1 - 2.0**-20]), eps=2.0**-20)
    assert np.array_equal(y, x)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_sixteen_bits_round_to_nearest_even(name: str) -> None:
    """Halfway cases, overflow to infinity, subnormals: as NumPy and ml_dtypes round."""
    dtype = DTYPES[name]
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    every = np.unique(finite(every).astype(np.float64))
    middles = (every[1:] + every[:-1]) / 2
    middles = middles.astype(np.float32)
    beta = np.concatenate([middles, np.nextafter(middles, np.float32(np.inf)), [1e10, -1e10, np.inf, np.nan]])
    beta = beta.astype(np.float32)
    y = xhat.normalize(np.zeros((1, beta.size), dtype), np.zeros(beta.size), np.ones(beta.size), None, beta)
    with np.errstate(over="ignore"):
        expected = beta.astype(dtype)
    assert np.array_equal(y[0].astype(np.float64), expected.astype(np.float64), equal_nan=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("where", LAYOUTS)
def test_nan_and_infinity_stay_in_their_channel(where: str, name: str, bad: float) -> None:
    x, dy, axis, (gamma, beta) = data(where, 0, outliers=False)
    x, dy, gamma, beta = (a.astype(DTYPES[name]) for a in (x, dy, gamma, beta))
    _, context = xhat.batch_norm(x, gamma, beta, **axis)
    before = xhat.batch_norm_backward(dy, context)
    np.moveaxis(x, axis["axis"], 0)[2].flat[77] = bad
    y, poisoned = xhat.batch_norm(x, gamma, beta, **axis)
    grads = xhat.batch_norm_backward(dy, poisoned)
    assert np.isnan(y.astype(np.float64)).any()
    assert not np.isfinite(poisoned.mean[2])
    clean = [0, 1, 3, 4]
    assert np.array_equal(poisoned.mean[clean], context.mean[clean])
    assert np.array_equal(poisoned.var[clean], context.var[clean])
    for got, was in (
        (y, xhat.normalize(x, context.mean, context.var, gamma, beta, **axis)),
        (grads.dx, before.dx),
    ):
        got, was = (np.moveaxis(a, axis["axis"], 0)[clean].astype(np.float64) for a in (got, was))
        assert np.array_equal(got, was)
    assert np.array_equal(grads.dgamma[clean], before.dgamma[clean])


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", LAYOUTS)
def test_a_padded_nan_touches_nothing_but_its_own_place(where: str, bad: float, activation: Any) -> None:
    """Weight 0 and dy = 0: the statistics, the sums and every other dx are those of clean padding."""
    x, dy, axis, (gamma, beta) = data(where, 0, outliers=False)
    shape = list(x.shape)
    shape[axis["axis"]] = 1
    keep = np.random.default_rng(1).random(shape) < 0.8
    padding = np.broadcast_to(~keep, x.shape)
    dy[padding] = 0
    results = []
    for filler in (0.0, bad):
        x[padding] = filler
        y, context = xhat.batch_norm(x, gamma, beta, **axis, mask=keep, activation=activation)
        grads = xhat.batch_norm_backward(dy, context)
        moments = xhat.moments(x, **axis, mask=keep)
        results.append([y[~padding], context.mean, context.var, *grads[:3], moments.mean, moments.m2])
    for clean, padded in zip(*results, strict=True):
        assert np.array_equal(clean, padded)


@pytest.mark.parametrize("outlier", [1e8, -1e12])
@pytest.mark.parametrize("shape", [(200_000, 1), (40, 1, 5000), (50_000, 1, 4), (3, 1, 66_667)])
@pytest.mark.parametrize("weighted", [False, True])
def test_float64_behind_an_outlier(shape: tuple[int, ...], outlier: float, weighted: bool) -> None:
    """The first element is what a piece's squares are shifted by."""
    x = np.random.default_rng(0).normal(size=shape)
    x.flat[0] = outlier
    mask = np.ones((shape[0], *shape[1:])) if weighted else None
    y, context = xhat.batch_norm(x, mask=mask)
    expected = oracle.forward(x)
    assert oracle.relative_l2(y, expected.y) <= 1e-14
    assert oracle.worst(y.ravel()[1:], expected.y.ravel()[1:]) <= 3e-12
    assert abs(context.var[0] / expected.var[0] - 1) <= 1e-13


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("where", LAYOUTS)
def test_a_variance_that_overflows_is_nan_and_so_is_all_that_depends_on_it(where: str) -> None:
    x, dy, axis, (gamma, beta) = data(where, 0, outliers=False)
    x, dy, gamma, beta = (a.astype(np.float64) for a in (x, dy, gamma, beta))
    x = x * 1e153
    y, context = xhat.batch_norm(x, gamma, beta, **axis)
    grads = xhat.batch_norm_backward(dy, context)
    assert all(np.isnan(a).all() for a in (y, context.var, grads.dx, grads.dgamma))
    few = np.random.default_rng(0).normal(size=(350, 1)) * 1e153  # whose squares overflow, and nothing else
    assert np.isnan(xhat.batch_norm(few)[0]).all()
    moments = xhat.moments(x, **axis)
    assert np.isnan(moments.m2).all()
    near, far = xhat.moments(x / 1e153, **axis), xhat.moments(x / 1e153 + 1e160, **axis)
    assert np.isnan(near.merge(far).m2).all()
    y, context = xhat.batch_norm(x * 1e-313, gamma, beta, **axis)  # eps is all that is left
    assert oracle.worst(y, oracle.forward(x * 1e-313, gamma, beta, **axis).y) <= 1e-15
