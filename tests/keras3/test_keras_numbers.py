"""Results and gradients of xhat.keras against the oracle, far from zero, in every dtype; Keras's layer beside it."""

from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from on_backend import BACKEND, KERAS, XHAT, Results, built, run, trains

EPS, MOMENTUM, C = 1e-3, 0.9, 5
LAYOUTS = {
    "NHWC": ((7, 23, 19, C), -1),
    "NCHW": ((7, C, 23, 19), 1),
    "(N, C)": ((4099, C), -1),
    "axis 0": ((C, 41), 0),
}
OFFSETS = [(0, 0), (1e2, 0), (1e4, 0), (1e6, 0), (0, 1e4), (0, 1e6)]


def data(where: str, offset: float = 0, dy_offset: float = 0) -> tuple[Any, Any, Any, Any]:
    """x and dy of unit variance around their offsets, gamma and beta."""
    shape, _ = LAYOUTS[where]
    rng = np.random.default_rng(3)
    x, dy = rng.normal(offset, size=shape), rng.normal(dy_offset, size=shape)
    return (*(a.astype(np.float32) for a in (x, dy, rng.uniform(0.5, 1.5, C), rng.normal(size=C))),)


def truth(x: Any, dy: Any, gamma: Any, beta: Any, axis: int, **options: Any) -> Results:
    """The same by the oracle."""
    o = {"axis": axis, "eps": EPS, **options}
    y, grads = oracle.forward(x, gamma, beta, **o), oracle.backward(dy, x, gamma, beta, **o)
    moved = 1 - MOMENTUM
    return Results(y.y, *grads[:3], moved * y.mean, MOMENTUM + moved * y.var)


def errors(got: Results, expected: Results) -> dict[str, float]:
    """The largest error of y, and the relative ones of the rest, of what there is."""
    found = {
        name: oracle.relative_l2(a, b)
        for name, a, b in zip(got._fields, got, expected, strict=True)
        if a is not None
    }
    return {**found, "y": oracle.worst(got.y, expected.y)}


@pytest.mark.parametrize(("offset", "dy_offset"), OFFSETS)
@pytest.mark.parametrize("where", LAYOUTS)
def test_no_offset_costs_digits(where: str, offset: float, dy_offset: float) -> None:
    x, dy, gamma, beta = data(where, offset, dy_offset)
    axis = LAYOUTS[where][1]
    layer = built(XHAT, x, gamma, beta, name="bn", axis=axis, momentum=MOMENTUM, epsilon=EPS)
    found = errors(run(layer, x, dy), truth(x, dy, gamma, beta, axis))
    assert found.pop("y") <= 2e-6
    assert max(found.values()) <= 1e-6
    assert len(found) == (5 if trains else 2)


def test_keras_loses_digits_far_from_zero() -> None:
    x, dy, gamma, beta = data("NHWC", 1e4)
    layer = built(KERAS, x, gamma, beta, momentum=MOMENTUM, epsilon=EPS)
    with np.errstate(invalid="ignore"):
        found = errors(run(layer, x, dy), truth(x, dy, gamma, beta, -1))
    assert (
        not found["y"] <= 5e-4
    )  # NaN on torch and numpy, where the variance is negative: a difference of squares
    assert not trains or not found["dgamma"] <= 1e-4


@pytest.mark.parametrize("offset", [0, 1e4, 1e6])
def test_evaluation_is_exact_far_from_zero(offset: float) -> None:
    x, dy, gamma, beta = data("NHWC", offset)
    mean, var = x.mean((0, 1, 2), np.float64).astype(np.float32), np.linspace(0.5, 2, C, dtype=np.float32)
    layer = built(XHAT, x, gamma, beta, name="bn", momentum=MOMENTUM, epsilon=EPS)
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(var)
    got = run(layer, x, dy, training=False)
    expected = truth(x, dy, gamma, beta, -1, fixed=(mean, var))._replace(mean=mean, var=var)
    found = errors(got, expected)
    assert found.pop("y") <= 2e-6
    assert max(found.values()) <= 1e-6
    assert np.array_equal(got.mean, mean) and np.array_equal(got.var, var)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("policy", ["mixed_{}", "{}"])
def test_16_bits_are_rounded_once(policy: str, dtype: str) -> None:
    x, _, gamma, beta = data("NHWC", 5)
    kind = np.dtype(dtype if dtype == "float16" else ml_dtypes.bfloat16)
    x, gamma, beta = (a.astype(kind) for a in (x, gamma, beta))
    layer = built(XHAT, x, gamma.astype(np.float32), beta.astype(np.float32), dtype=policy.format(dtype))
    got = run(layer, x.astype(np.float32))
    expected = oracle.forward(x, gamma, beta, axis=-1, eps=EPS).y
    assert layer.compute_dtype == dtype
    unit = np.spacing(np.abs(expected).astype(kind)).astype(np.float64)
    assert np.all(np.abs(got.y - expected) <= unit / 2 + 2e-6)  # the rounding, and what float32 was off by


def in_64_bits() -> Any:
    """JAX has float64 where it is told so."""
    if BACKEND != "jax":
        return nullcontext()
    import jax

    return jax.enable_x64(True)


@pytest.mark.skipif(BACKEND == "numpy", reason="that backend rounds the results of operations to float32")
def test_float64_is_computed_in_float64() -> None:
    x, dy, gamma, beta = in_float64()
    with in_64_bits():
        layer = built(XHAT, x, gamma, beta, name="bn", momentum=MOMENTUM, epsilon=EPS, dtype="float64")
        found = errors(run(layer, x, dy), truth(x, dy, gamma, beta, -1))
    assert max(found.values()) <= 2e-14 * 1e3  # the offset takes three digits


def test_keras_computes_float64_in_float32() -> None:
    x, dy, gamma, beta = in_float64()
    with in_64_bits():
        layer = built(KERAS, x, gamma, beta, momentum=MOMENTUM, epsilon=EPS, dtype="float64")
        found = errors(run(layer, x, dy), truth(x, dy, gamma, beta, -1))
    assert found["y"] > 1e-6


def in_float64() -> Any:
    rng = np.random.default_rng(0)
    return rng.normal(1e3, size=(37, C)), rng.normal(size=(37, C)), *rng.normal(size=(2, C))


@pytest.mark.skipif(not trains, reason="the numpy backend has no gradients")
def test_the_second_derivative_is_exact() -> None:
    """The gradient of sum(v dx) with respect to x, by the backend, and by differences of the oracle's dx."""
    rng = np.random.default_rng(0)
    x, dy, v = rng.normal(size=(3, 11, 2))
    offset = 1e4
    x = (x + offset).astype(np.float32)
    layer = built(XHAT, x)
    got = _second(layer, *(a.astype(np.float32) for a in (x, dy, v)))
    moved = x.astype(np.float64)
    dy, v = (a.astype(np.float32).astype(np.float64) for a in (dy, v))
    expected = oracle.by_differences(
        lambda: float((v * oracle.backward(dy, moved, axis=-1, eps=EPS).dx).sum()), moved, 1e-3
    )
    assert oracle.relative_l2(got, expected) <= 2e-6


def _second(layer: Any, x: Any, dy: Any, v: Any) -> Any:
    if BACKEND == "torch":
        import torch

        x, dy, v = (torch.tensor(a) for a in (x, dy, v))
        x.requires_grad_(True)
        (dx,) = torch.autograd.grad(layer(x, training=True), x, dy, create_graph=True)
        return torch.autograd.grad((v * dx).sum(), x)[0].numpy()
    import jax

    def loss(x: Any) -> Any:
        state = [[w.value for w in ws] for ws in (layer.trainable_variables, layer.non_trainable_variables)]
        return (layer.stateless_call(*state, x, training=True)[0] * dy).sum()

    # Forward over reverse: the other order of modes than torch's.
    return np.asarray(jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (v,))[1])(x))
