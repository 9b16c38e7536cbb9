"""The one reference: batch normalization's definition, and its gradients by the chain rule, step by step.

Nothing of xhat may be imported here, and nothing clever may be written here: the arithmetic is NumPy's widest
(np.longdouble: 64 bits of fraction on x86), the formulas are those of the definition, and the backward pass
takes the long way of Ioffe and Szegedy (through var, then through mu), so that an algebraic slip in the
library's short form can't be repeated. `exact_moments` does the same over fractions, without any rounding.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
WIDE = np.longdouble


class Forward(NamedTuple):
    """Everything that the forward pass computes: arrays of x's shape, or of the channels' shape."""

    y: Array
    pre: Array  # before the activation
    d: Array  # x - mean
    mean: Array
    var: Array
    rstd: Array
    m: Any


class Backward(NamedTuple):
    """The gradients; dpre, the gradient before the activation, is the residual's."""

    dx: Array
    dgamma: Array
    dbeta: Array
    dpre: Array


class Moments(NamedTuple):
    """Sum of weights, weighted mean, and weighted sum of squared deviations."""

    m: Any
    mean: Array
    m2: Array


def wide(a: Any) -> Array:
    """Exactly the same numbers, in the widest arithmetic."""
    return np.asarray(a).astype(np.float64, copy=False).astype(WIDE) if not is_wide(a) else np.asarray(a)


def is_wide(a: Any) -> bool:
    """Whether the numbers are in the widest arithmetic already."""
    return bool(np.asarray(a).dtype == WIDE)


def axes_of(x: Array, axis: int | Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The channel axes and the others, ascending."""
    channels = sorted(a % x.ndim for a in ([axis] if isinstance(axis, int) else axis))
    return tuple(channels), tuple(a for a in range(x.ndim) if a not in channels)


def on_channels(v: Any, x: Array, axis: int | Sequence[int]) -> Array:
    """A parameter of the channels' shape, with ones where x has its other axes."""
    _, others = axes_of(x, axis)
    return np.expand_dims(wide(v), others) if np.ndim(v) else wide(v)


def weights_of(x: Array, mask: Any) -> Array:
    """The weight of each value of x."""
    return np.broadcast_to(wide(1 if mask is None else mask), x.shape)


def moments(x: Array, *, axis: int | Sequence[int] = 1, mask: Any = None) -> Moments:
    """m = sum w, mean = sum w x / m, m2 = sum w (x - mean)^2; a weight of 0 removes the value, also NaN."""
    channels, others = axes_of(x, axis)
    w = weights_of(x, mask)
    v = np.where(w > 0, wide(x), 0)
    m = weights_of(np.empty([1 if a in channels else n for a, n in enumerate(x.shape)]), mask).sum()
    with np.errstate(invalid="ignore"):  # an empty batch has no mean
        mean = (w * v).sum(axis=others, keepdims=True) / m
        m2 = (w * np.where(w > 0, v - mean, 0) ** 2).sum(axis=others)
    return Moments(m, mean.squeeze(others), m2)


def activate(pre: Array, activation: Any) -> Array:
    """relu, leaky ReLU or silu, by their definitions."""
    if activation is None:
        return pre
    if activation == "silu":
        with np.errstate(over="ignore"):
            return pre / (1 + np.exp(-pre))
    slope = WIDE(0 if activation == "relu" else activation[1])
    return np.where(pre > 0, pre, slope * pre)


def activation_slope(pre: Array, activation: Any) -> Array:
    """The derivative of the activation; that of a ReLU at 0 is the left one."""
    if activation is None:
        return np.ones_like(pre)
    if activation == "silu":
        with np.errstate(over="ignore", invalid="ignore"):
            e = np.exp(-pre)
            return np.where(np.isinf(e), 0, (1 + e + pre * e) / (1 + e) ** 2)
    return np.where(pre > 0, WIDE(1), WIDE(0 if activation == "relu" else activation[1]))


def forward(
    x: Array,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int | Sequence[int] = 1,
    eps: float = 1e-5,
    correction: int = 0,
    mask: Any = None,
    residual: Any = None,
    activation: Any = None,
    fixed: tuple[Any, Any] | None = None,
) -> Forward:
    """y = act(gamma (x - mean) / sqrt(var + eps) + beta + residual); `fixed`: evaluation's mean and var."""
    m, mean, m2 = moments(x, axis=axis, mask=mask)
    with np.errstate(invalid="ignore"):
        var = m2 / (m - correction) if fixed is None else wide(fixed[1])
    mean = mean if fixed is None else wide(fixed[0])
    rstd = 1 / np.sqrt(var + WIDE(eps))
    d = wide(x) - on_channels(mean, x, axis)
    pre = d * on_channels(rstd, x, axis) * on_channels(1 if gamma is None else gamma, x, axis)
    pre = pre + on_channels(0 if beta is None else beta, x, axis)
    pre = pre if residual is None else pre + wide(residual)
    return Forward(activate(pre, activation), pre, d, mean, var, rstd, m)


def backward(
    dy: Array,
    x: Array,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int | Sequence[int] = 1,
    correction: int = 0,
    mask: Any = None,
    activation: Any = None,
    fixed: tuple[Any, Any] | None = None,
    **options: Any,
) -> Backward:
    """The chain rule, step by step: dpre, dxhat, then dvar, dmean and dx of Ioffe and Szegedy, weighted."""
    _channels, others = axes_of(x, axis)
    same = {"axis": axis, "correction": correction, "mask": mask, "activation": activation, "fixed": fixed}
    f = forward(x, gamma, beta, **same, **options)
    w = weights_of(x, mask)
    seen = (w > 0) | (wide(dy) != 0)  # a padded value that the loss does not look at takes no part
    dpre = np.where(seen, wide(dy) * np.where(seen, activation_slope(f.pre, activation), 0), 0)
    d = np.where(seen, f.d, 0)
    rstd = on_channels(f.rstd, x, axis)
    dxhat = dpre * on_channels(1 if gamma is None else gamma, x, axis)
    dx = dxhat * rstd
    if fixed is None and x.size:
        dvar = (dxhat * d).sum(axis=others, keepdims=True) * -(rstd**3) / 2
        dmean = -(dxhat * rstd).sum(axis=others, keepdims=True)  # d var / d mean is 0
        dx = dx + np.where(w > 0, dvar * 2 * w * d / (f.m - correction) + dmean * w / f.m, 0)
    return Backward(dx, (dpre * d * rstd).sum(axis=others), dpre.sum(axis=others), dpre)


def exact_moments(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[Fraction, ...]:
    """m, mean and m2 of one channel, without rounding."""
    x = [Fraction(v) for v in values]
    w = [Fraction(1)] * len(x) if weights is None else [Fraction(v) for v in weights]
    m = sum(w, Fraction(0))
    mean = sum((a * b for a, b in zip(w, x, strict=True)), Fraction(0)) / m
    return m, mean, sum((a * (b - mean) ** 2 for a, b in zip(w, x, strict=True)), Fraction(0))


def relative_l2(got: Any, expected: Array) -> float:
    """|got - expected| / |expected|, in the Euclidean norm."""
    difference, size = wide(got) - expected, np.sqrt((expected**2).sum())
    return float(np.sqrt((difference**2).sum()) / (size if size else 1))


def worst(got: Any, expected: Array) -> float:
    """max |got - expected|; infinite where only one of the two is NaN."""
    got = wide(got)
    assert got.shape == expected.shape, f"shape {got.shape}, expected {expected.shape}"
    if not np.array_equal(np.isnan(got), np.isnan(expected)):
        return float("inf")
    with np.errstate(invalid="ignore"):
        same = (got == expected) | np.isnan(got)
        return float(np.max(np.where(same, 0, np.abs(got - expected)), initial=0))


def by_differences(loss: Callable[[], float], moved: Array, step: float) -> Array:
    """Central differences of a loss in every element of an array that it reads; `moved` is restored."""
    gradient = np.empty(moved.shape)
    for index in np.ndindex(moved.shape):
        value = moved[index]
        moved[index] = value + step
        above = loss()
        moved[index] = value - step
        gradient[index] = (above - loss()) / (2 * step)
        moved[index] = value
    return gradient
