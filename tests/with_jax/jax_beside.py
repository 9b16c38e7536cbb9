"""What the tests of the JAX faces share: the definition in JAX's float64, and errors of a step against the oracle."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle

try:
    from jax import enable_x64
except ImportError:  # before 0.8
    from jax.experimental import enable_x64

__all__ = ["Errors", "Step", "definition", "enable_x64", "errors", "numbers", "relative"]


def numbers(shape: tuple[int, ...], seed: int, offset: float = 0, dtype: Any = np.float32) -> Any:
    """Normal numbers around an offset."""
    return (np.random.default_rng(seed).normal(size=shape) + offset).astype(dtype)


def definition(x: Any, gamma: Any = 1, beta: Any = 0, *, mask: Any = 1, axis: int = -1, eps: float = 1e-5,
               correction: int = 0, residual: Any = 0) -> Any:  # fmt: skip
    """Batch norm as it is defined, for JAX's own autodiff in float64: the oracle of transforms and higher orders."""
    axes = tuple(a for a in range(x.ndim) if a != axis % x.ndim)
    w = jnp.broadcast_to(
        jnp.asarray(mask, x.dtype), tuple(1 if a not in axes else n for a, n in enumerate(x.shape))
    )
    m = w.sum()
    mu = (w * x).sum(axes, keepdims=True) / m
    var = (w * (x - mu) ** 2).sum(axes, keepdims=True) / (m - correction)
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    gamma, beta = (
        jnp.broadcast_to(jnp.asarray(p, x.dtype), shape[axis]).reshape(shape) for p in (gamma, beta)
    )
    return gamma * (x - mu) / jnp.sqrt(var + eps) + beta + residual


def relative(got: Any, expected: Any) -> float:
    """The largest error, as a share of the largest number."""
    differences = jax.tree.map(
        lambda a, b: float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float)))), got, expected
    )
    sizes = jax.tree.map(lambda b: float(np.max(np.abs(np.asarray(b, float)))), expected)
    return max(
        d / (s or 1) for d, s in zip(jax.tree.leaves(differences), jax.tree.leaves(sizes), strict=True)
    )


class Step(NamedTuple):
    """What a training step gives."""

    y: Any
    mean: Any
    var: Any
    dx: Any
    dgamma: Any
    dbeta: Any


class Errors(NamedTuple):
    """Largest errors of y and of the mean; relative errors of var, dx, dgamma, dbeta in the Euclidean norm."""

    y: float
    mean: float
    var: float
    dx: float
    dgamma: float
    dbeta: float


def errors(step: Step, x: Any, dy: Any, gamma: Any, beta: Any, **options: Any) -> Errors:
    """The errors of a step on these arrays, whose numbers are taken as they are."""
    f = oracle.forward(x, gamma, beta, **options)
    back = oracle.backward(dy, x, gamma, beta, **options)
    return Errors(
        oracle.worst(step.y, f.y),
        oracle.worst(step.mean, f.mean),
        oracle.relative_l2(step.var, f.var),
        oracle.relative_l2(step.dx, back.dx),
        oracle.relative_l2(step.dgamma, back.dgamma),
        oracle.relative_l2(step.dbeta, back.dbeta),
    )
