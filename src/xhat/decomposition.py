"""dx taken apart into its paths, in NumPy and float64: the equations on a context. No kernel is run here."""

import math
from typing import Any

import numpy as np

from xhat import equations
from xhat.checks import Array
from xhat.equations import Paths
from xhat.results import Context, check_backward
from xhat.weights import unflattened

__all__ = ["gradient_paths"]


def gradient_paths(dy: Any, context: Context) -> Paths:
    """dx path by path, in float64: direct (through xhat), through the mean, through the variance; they sum to dx.

        direct   =  gamma rstd g
        mean     = -gamma rstd w sum(g) / m
        variance = -gamma rstd w xhat sum(g xhat) / (m - correction)

    dy: x's shape and dtype; g = dy act'(pre). Returns Paths(direct, mean, variance) of x's shape.
    Raises what `batch_norm_backward` raises.
    """
    c = context
    dy = check_backward(dy, c, "gradient_paths")
    if not c.x.size:
        return Paths(np.zeros(c.x.shape), np.zeros(c.x.shape), np.zeros(c.x.shape))
    others = tuple(a for a in range(c.x.ndim) if a not in c.axis)
    shape = [n if a in c.axis else 1 for a, n in enumerate(c.x.shape)]

    def per_channel(value: Array | None, default: float) -> Any:
        return default if value is None else value.reshape(shape)

    gamma, mu = per_channel(c.gamma, 1.0), per_channel(c.mean, 0.0)
    rstd = equations.reciprocal_std(per_channel(c.var, 1.0), c.eps, np.sqrt)
    xhat = equations.standardize(c.x.astype(np.float64), mu, rstd)
    g = dy.astype(np.float64)
    if c.activation is not None:
        pre = gamma * xhat + per_channel(c.beta, 0.0)
        if c.residual and c.extra is not None:
            extra = c.extra.astype(np.float64)
            pre = extra if c.activation == "leaky_relu" else pre + extra
        slope = equations.activation_slope(pre, c.activation, c.slope, np)
        g = np.where(g == 0, g, g * slope)  # no gradient passes a padded NaN
    w: Any = 1.0
    if c.weights is not None:
        w = unflattened(c.weights, c.view, c.x.shape)
        xhat = np.where((w == 0) & (g == 0), 0.0, xhat)  # a padded NaN that the loss does not look at
    if math.isinf(c.count):
        xhat = np.zeros_like(xhat)  # constant statistics: no path leads through them, whatever number x is
    sums = equations.gradient_sums(g, xhat, lambda v: v.sum(axis=others, keepdims=True))
    terms = equations.paths(g, xhat, *sums, gamma=gamma, rstd=rstd, m=c.count, correction=c.correction, w=w)
    return Paths(*(np.broadcast_to(term, c.x.shape).copy() for term in terms))
