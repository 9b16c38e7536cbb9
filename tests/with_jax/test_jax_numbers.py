"""`xhat.jax` against the oracle: offsets, dtypes, layouts, masks, residuals and activations, without 64-bit mode."""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax_beside import Step, enable_x64, errors, numbers  # noqa: E402

import xhat.jax as xj  # noqa: E402

EPSILON = {"float64": 2.2e-16, "float32": 1.2e-7, "float16": 9.8e-4, "bfloat16": 7.9e-3}
C = 5


@partial(jax.jit, static_argnames=("axis", "correction", "activation"))
def step(
    x: Any, gamma: Any, beta: Any, dy: Any, mask: Any = None, residual: Any = None, **static: Any
) -> Any:
    """y, moments and gradients."""

    def f(x: Any, gamma: Any, beta: Any, residual: Any) -> Any:
        return xj.batch_norm(x, gamma, beta, mask=mask, residual=residual, **static)

    y, pull, moments = jax.vjp(f, x, gamma, beta, residual, has_aux=True)
    return y, moments, pull(dy)


def found(x: Any, dy: Any, gamma: Any, beta: Any, correction: int = 0, **options: Any) -> tuple[Step, Any]:
    y, m, (dx, dgamma, dbeta, dresidual) = step(x, gamma, beta, dy, correction=correction, **options)
    assert all(a.dtype == x.dtype for a in (y, dx))
    wide = np.asarray(m.high, np.float64) + np.asarray(m.low, np.float64)
    return Step(y, wide, m.var(correction), dx, dgamma, dbeta), dresidual


batch_norm = jax.jit(xj.batch_norm, static_argnames=("axis",))
moments = jax.jit(xj.moments)
GAMMA, BETA = numbers((C,), 1) + 2, numbers((C,), 2)


@pytest.mark.parametrize("of_dy", [False, True], ids=["x", "dy"])
@pytest.mark.parametrize("offset", [0, 1e2, 1e4, 1e6, -1e6])
def test_an_offset_costs_no_digits(offset: float, of_dy: bool) -> None:
    x = numbers((16, 20, 12, C), 3, 0 if of_dy else offset)
    dy = numbers(x.shape, 4, offset if of_dy else 0)
    got, _ = found(x, dy, GAMMA, BETA, axis=-1)
    e = errors(got, x, dy, GAMMA, BETA, axis=-1)
    assert e.y < 4e-6  # of values up to 10
    assert e.mean < 1e-6
    assert max(e[2:]) < 1e-6, e


@pytest.mark.parametrize("dtype", EPSILON)
def test_every_dtype(dtype: str) -> None:
    """float32 arithmetic, rounded once; float64 in 64-bit mode."""
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    x, dy = numbers((6, 7, C), 5, 3, kind), numbers((6, 7, C), 6, 0, kind)
    gamma, beta = GAMMA.astype(wide), BETA.astype(wide)
    with enable_x64(dtype == "float64"):
        got, _ = found(x, dy, gamma, beta, axis=-1)
    assert got.dgamma.dtype == got.var.dtype == wide
    e = errors(got, x, dy, gamma, beta, axis=-1)
    unit, fine = EPSILON[dtype], EPSILON[wide.name]
    assert e.y < 8 * unit and e.dx < 2 * unit
    assert max(e.mean, e.var, e.dgamma, e.dbeta) < 20 * fine, e


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, C, 4, 7), 1), ((37, C), 1), ((C, 3, 11), 0), ((3, 11, C), (-1,))]
)
def test_every_layout(shape: tuple[int, ...], axis: Any) -> None:
    x, dy = numbers(shape, 7, 100), numbers(shape, 8)
    got, _ = found(x, dy, GAMMA, BETA, axis=axis)
    assert max(errors(got, x, dy, GAMMA, BETA, axis=axis)) < 3e-6


def test_channels_of_two_axes() -> None:
    x, gamma = numbers((4, 2, 6, 3), 9, 10), numbers((2, 3), 10)
    y, m = batch_norm(x, gamma, axis=(3, 1))
    assert oracle.worst(y, oracle.forward(x, gamma, axis=(3, 1)).y) < 2e-6
    assert m.mean.shape == m.m2.shape == (2, 3)


WEIGHTS = np.abs(numbers((6, 7, 1), 11)) * (numbers((6, 7, 1), 12) > -0.5)


@pytest.mark.parametrize(
    ("mask", "residual", "activation", "correction"),
    [("bool", True, "relu", 0), ("weights", True, ("leaky_relu", 0.1), 1), ("weights", False, "silu", 0),
     ("bool", False, None, 1), (None, True, "silu", 1), (None, False, "relu", 1)],
)  # fmt: skip
def test_masks_residuals_and_activations(mask: Any, residual: bool, activation: Any, correction: int) -> None:
    x, dy = numbers((6, 7, C), 13, 1e3), numbers((6, 7, C), 14)
    options: dict[str, Any] = {"axis": -1, "correction": correction, "activation": activation}
    options["mask"] = {None: None, "bool": WEIGHTS > 0, "weights": WEIGHTS}[mask]
    options["residual"] = numbers(x.shape, 15) if residual else None
    pre = oracle.forward(x, GAMMA, BETA, **{**options, "activation": None}).y
    dy[np.abs(pre) < 1e-4] = 0  # which side of the kink is a matter of rounding
    got, dresidual = found(x, dy, GAMMA, BETA, **options)
    e = errors(got, x, dy, GAMMA, BETA, **options)
    assert e.y < 4e-6 and e.mean < 2e-6 and max(e[2:]) < 1e-6, e
    if residual:
        assert oracle.relative_l2(dresidual, oracle.backward(dy, x, GAMMA, BETA, **options).dpre) < 1e-6


def test_an_offset_of_dy_under_a_mask_costs_no_digits() -> None:
    """As of a loss over the included places."""
    mask = numbers((16, 20, 12, 1), 28) < 0.5
    x, dy = numbers((16, 20, 12, C), 29), numbers((16, 20, 12, C), 30, 1e6) * mask
    got, _ = found(x, dy, GAMMA, BETA, axis=-1, mask=mask)
    e = errors(got, x, dy, GAMMA, BETA, axis=-1, mask=mask)
    assert max(e[2:]) < 1e-6, e


@pytest.mark.parametrize("padding", [np.nan, np.inf, 1e30])
def test_padding_may_hold_anything(padding: float) -> None:
    mask = WEIGHTS > 0
    x, dy = numbers((6, 7, C), 16), numbers((6, 7, C), 17) * mask
    padded = np.where(mask, x, np.float32(padding))
    (clean, _), (got, _) = (found(a, dy, GAMMA, BETA, axis=-1, mask=mask) for a in (x, padded))
    inside = np.broadcast_to(mask, x.shape)
    np.testing.assert_array_equal(np.asarray(got.y)[inside], np.asarray(clean.y)[inside])
    for name in ("mean", "var", "dgamma", "dbeta", "dx"):
        np.testing.assert_array_equal(getattr(got, name), getattr(clean, name), name)
    if padding != 1e30:
        assert np.isnan(np.asarray(got.y)[~inside]).all()


def test_gradients_with_respect_to_weights() -> None:
    """JAX's autodiff of the definition in float64 agrees: no gradient is silently 0."""
    from jax_beside import definition

    x, t = numbers((6, 7, C), 18), numbers((6, 7, C), 19)
    with enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, WEIGHTS + 0.1, t)]
        for c in (0, 1):
            ours, theirs = (
                jax.jit(jax.grad(lambda w, f=f, c=c: (f(wide[0], mask=w, correction=c) * wide[2]).sum()))(
                    wide[1]
                )
                for f in (lambda *a, **k: xj.batch_norm(*a, **k)[0], definition)
            )
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


def test_gradients_with_respect_to_moments() -> None:
    x = numbers((6, 7, C), 20)
    with enable_x64(True):
        x = jnp.asarray(x, jnp.float64)

        def ours(x: Any) -> Any:
            m = xj.moments(x)
            return (m.mean**2).sum() + (m.var(1) ** 3).sum()

        def theirs(x: Any) -> Any:
            return (x.mean((0, 1)) ** 2).sum() + (x.var((0, 1), ddof=1) ** 3).sum()

        both = [jax.jit(jax.grad(f))(x) for f in (ours, theirs)]
        np.testing.assert_allclose(*both, rtol=1e-10, atol=1e-13)


def test_a_constant_channel_is_beta_exactly() -> None:
    y, m = batch_norm(np.full((100, 3), 0.1, np.float32), None, BETA[:3])
    np.testing.assert_array_equal(y, np.broadcast_to(BETA[:3], y.shape))
    np.testing.assert_array_equal(m.m2, 0)


def test_normalize_takes_the_mean_of_moments_with_all_its_digits() -> None:
    x = numbers((64, C), 21, 1e5)
    m = moments(x)
    expected = oracle.forward(x, GAMMA, BETA).y
    assert oracle.worst(xj.normalize(x, (m.high, m.low), m.var(), GAMMA, BETA), expected) < 4e-6
    assert (
        oracle.worst(xj.normalize(x, m.mean, m.var(), GAMMA, BETA), expected) > 1e-4
    )  # one float32 has too few


def test_normalize_and_its_gradients() -> None:
    x, dy = numbers((6, 7, C), 22), numbers((6, 7, C), 23)
    mean, var = numbers((C,), 24), np.abs(numbers((C,), 25)) + 0.5
    y, pull = jax.vjp(
        jax.jit(lambda *a: xj.normalize(a[0], mean, var, *a[1:], activation="silu")), x, GAMMA, BETA
    )
    fixed = {"axis": -1, "fixed": (mean, var), "activation": "silu"}
    assert oracle.worst(y, oracle.forward(x, GAMMA, BETA, **fixed).y) < 3e-6
    back = oracle.backward(dy, x, GAMMA, BETA, **fixed)
    for got, expected in zip(pull(dy), back, strict=False):
        assert oracle.relative_l2(got, expected) < 1e-6


def test_moments_merge() -> None:
    """Of parts of any size, an empty one and one without weights among them, in either order."""
    x = numbers((100, C), 26, 1e5)
    x[:30] += 7
    parts = [moments(a) for a in (x[:30], x[30:30], x[30:90], x[90:])]
    parts.append(moments(x[:5], mask=np.zeros((5, 1))))
    expected = oracle.moments(x)
    merge = jax.jit(xj.merge)
    for order in (parts, parts[::-1]):
        m = merge(*order)
        assert float(m.count) == 100
        assert oracle.worst(np.float64(m.high) + np.float64(m.low), expected.mean) < 2e-6
        assert oracle.relative_l2(m.m2, expected.m2) < 1e-6
    empty = merge(parts[1], parts[4])
    assert float(empty.count) == 0 and not np.any(empty.high) and np.isnan(empty.var()).all()


def test_an_empty_batch_gives_an_empty_y() -> None:
    for x in (np.empty((0, C), np.float32), np.empty((4, 0), np.float32)):
        y, m = batch_norm(x)
        assert y.shape == x.shape
        assert float(m.count) == len(x)
    assert jax.grad(lambda x: batch_norm(x)[0].sum())(np.empty((0, C), np.float32)).shape == (0, C)


def test_not_a_number_stays_in_its_channel() -> None:
    x = numbers((8, C), 27)
    x[3, 1] = np.nan
    x[3, 2] = np.inf
    x[3, 3] = 1e30  # its square is no float32
    y, _ = batch_norm(x)
    assert np.isnan(y[:, 1:4]).all()
    assert np.isfinite(y[:, [0, 4]]).all()


def test_relu_is_the_left_derivative_at_0_and_silu_is_finite_at_both_ends() -> None:
    x = np.array([[-1e4], [0], [1e4]], np.float32)
    one = np.ones(1, np.float32)

    def slopes(activation: Any) -> Any:
        def total(x: Any) -> Any:
            return xj.normalize(x, 0 * one, one, eps=1e-12, activation=activation).sum()

        return np.asarray(jax.jit(jax.grad(total))(x))[:, 0]

    np.testing.assert_array_equal(slopes("relu"), [0, 0, 1])
    np.testing.assert_allclose(slopes(("leaky_relu", 0.5)), [0.5, 0.5, 1])
    np.testing.assert_allclose(slopes("silu"), [0, 0.5, 1])
