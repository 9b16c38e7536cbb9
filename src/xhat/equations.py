"""The paper: batch normalization's five functions as arithmetic, over any array namespace, or over symbols.

No shapes, dtypes, layouts or checks live here. Every function takes what it sums with (``total``, the sum
over the batch, with the result broadcasting against x) or what takes roots (``sqrt``) as an argument, so
that the same lines run on NumPy, PyTorch and JAX arrays, and on SymPy expressions, where they are proved.

Words: x input, w weight of each value (1 without a mask), m = total(w), mu mean, var variance,
c correction (0: divide by m, 1: by m - 1), rstd = (var + eps)^(-1/2), xhat = (x - mu) rstd.

Source: Ioffe and Szegedy, "Batch Normalization", 2015, section 3 (forward and backward);
Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979 (merge).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = [
    "Paths",
    "activate",
    "activation_slope",
    "gradient_sums",
    "input_gradient",
    "merge",
    "moments",
    "normalize",
    "paths",
    "reciprocal_std",
    "second_gradient_sums",
    "silu_slope",
    "standardize",
    "track",
    "variance",
]

# An array of any namespace, a scalar, or a symbolic expression: the type checker can't name that union.
Value = Any
Total = Callable[[Value], Value]


class Paths(NamedTuple):
    """The three terms of the gradient with respect to the input.

    They are what `gradient_paths` returns, and they sum to dx::

        dx = direct + mean + variance

    Attributes
    ----------
    direct : array
        The term through xhat alone: ``gamma rstd dy``.
    mean : array
        The term through the mean of the batch.
    variance : array
        The term through the variance of the batch.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, context = xhat.batch_norm(x)
    >>> dy = np.array([[1.0], [0.0], [0.0]])
    >>> paths = xhat.gradient_paths(dy, context)
    >>> paths.mean.round(4).ravel().tolist()
    [-0.1543, -0.1543, -0.1543]
    >>> dx = paths.direct + paths.mean + paths.variance
    >>> np.allclose(dx, xhat.batch_norm_backward(dy, context).dx)
    True
    """

    direct: Value
    mean: Value
    variance: Value


def moments(x: Value, total: Total, m: Value, w: Value = 1) -> tuple[Value, Value]:
    """mu = sum(w x) / m and m2 = sum(w (x - mu)^2), in two passes."""
    mu = total(w * x) / m
    return mu, total(w * (x - mu) ** 2)


def merge(
    ma: Value, mu_a: Value, m2_a: Value, mb: Value, mu_b: Value, m2_b: Value
) -> tuple[Value, Value, Value]:
    """Moments of two batches together: counts add, means weigh, m2 gains delta^2 ma mb / m (Chan et al.)."""
    m = ma + mb
    delta = mu_b - mu_a
    m2 = m2_a + m2_b + delta**2 * (ma * (mb / m))
    return (
        m,
        mu_a + delta * (mb / m),
        m2 + 0 * m2,
    )  # NaN where a square overflows: an infinite var would hide x


def variance(m2: Value, m: Value, correction: Value = 0) -> Value:
    """var = m2 / (m - c)."""
    return m2 / (m - correction)


def reciprocal_std(var: Value, eps: Value, sqrt: Callable[[Value], Value]) -> Value:
    """rstd = (var + eps)^(-1/2)."""
    return 1 / sqrt(var + eps)


def standardize(x: Value, mu: Value, rstd: Value) -> Value:
    """xhat = (x - mu) rstd: subtract before scaling, or a large mean cancels the digits."""
    return (x - mu) * rstd


def normalize(x: Value, mu: Value, rstd: Value, gamma: Value = 1, beta: Value = 0) -> Value:
    """y = gamma xhat + beta."""
    return (x - mu) * (gamma * rstd) + beta


def gradient_sums(dy: Value, xhat: Value, total: Total) -> tuple[Value, Value]:
    """sum(dy) and sum(dy xhat): they are dbeta and dgamma."""
    return total(dy), total(dy * xhat)


def paths(
    dy: Value,
    xhat: Value,
    sum_dy: Value,
    sum_dy_xhat: Value,
    *,
    gamma: Value = 1,
    rstd: Value,
    m: Value,
    correction: Value = 0,
    w: Value = 1,
) -> Paths:
    """The three paths from the loss to x.

    direct   =  gamma rstd dy
    mean     = -gamma rstd w sum_dy / m
    variance = -gamma rstd w xhat sum_dy_xhat / (m - c)
    """
    scale = gamma * rstd
    return Paths(
        direct=scale * dy,
        mean=-scale * w * (sum_dy / m),
        variance=-scale * w * xhat * (sum_dy_xhat / (m - correction)),
    )


def input_gradient(dy: Value, xhat: Value, sum_dy: Value, sum_dy_xhat: Value, **terms: Value) -> Value:
    """dx, the sum of the three paths; the keyword arguments are those of `paths`."""
    direct, mean, through_variance = paths(dy, xhat, sum_dy, sum_dy_xhat, **terms)
    return direct + mean + through_variance


def activate(pre: Value, activation: str | None, slope: float, xp: Any) -> Value:
    """act(pre): identity, leaky ReLU (relu is slope 0), or silu(pre) = pre / (1 + exp(-pre))."""
    if activation is None:
        return pre
    if activation == "leaky_relu":
        return xp.where(pre < 0, slope * pre, pre)
    if activation == "silu":
        return pre / (1 + xp.exp(-pre))
    raise KeyError(activation)


def activation_slope(pre: Value, activation: str | None, slope: float, xp: Any) -> Value:
    """act'(pre): 1; slope where pre <= 0 else 1; sigma (1 + pre (1 - sigma)) with sigma = 1 / (1 + exp(-pre))."""
    if activation is None:
        return xp.ones_like(pre)
    if activation == "leaky_relu":
        return xp.where(pre <= 0, slope * xp.ones_like(pre), xp.ones_like(pre))
    if activation == "silu":
        return silu_slope(pre, 1 / (1 + xp.exp(-pre)))
    raise KeyError(activation)


def silu_slope(pre: Value, sigma: Value) -> Value:
    """silu'(pre) = sigma (1 + pre (1 - sigma)), with the sigmoid of pre, however that is computed."""
    return sigma * (1 + pre * (1 - sigma))


def second_gradient_sums(
    sums: tuple[Value, Value], cosums: tuple[Value, Value], product: Value, dgamma: Value, *, gamma: Value,
    rstd: Value, m: Value, correction: Value = 0,
) -> tuple[Value, Value, Value, Value, Value]:  # fmt: skip
    """What the gradient of the gradient is made of, per channel.

    Let v be the cotangent of dx, a that of dgamma; s0 = sum dy, s1 = sum dy xhat (sums), t0 = sum w v,
    t1 = sum w v xhat (cosums), u = sum v dy (product), k = m - c. Then F = sum v dx + a dgamma has

        q    = u - s0 t0 / m - s1 t1 / k                                        dF/dgamma = rstd q
        h    = A dy + B w v       A = rstd (a - gamma rstd t1 / k)              B = -gamma rstd^2 s1 / k
        dF/dx = h - w (A s0 + B t0) / m - w xhat (A s1 + B t1 + gamma rstd^2 q) / k

    the last one being `input_gradient` of h with gamma rstd = 1. Returns A, B, its two sums, and dF/dgamma.
    """
    (s0, s1), (t0, t1) = sums, cosums
    k = m - correction
    q = product - s0 * t0 / m - s1 * t1 / k
    a = rstd * (dgamma - gamma * rstd * t1 / k)
    b = -gamma * rstd**2 * s1 / k
    return a, b, a * s0 + b * t0, a * s1 + b * t1 + gamma * rstd**2 * q, rstd * q


def track(running: Value, batch: Value, weight: Value) -> Value:
    """The running statistic that follows a batch: running + weight (batch - running)."""
    return running + weight * (batch - running)
