"""How far the results of a careful kernel may be from the exact ones: a bound on the rounding error of every value.

A careful kernel computes in one arithmetic (float32, or float64 for float64 inputs), subtracts the mean before it
squares, and rounds each result to its dtype. With the unit roundoff u of its arithmetic, m values a channel, and
d = |mu| / sigma, the bounds are made of three numbers a channel:

    a sum of m terms         s = (8 + 4 sqrt(m)) u, relative to the sum of magnitudes: a plain loop on average, and
                             blocks, trees and compensated sums always
    the mean                 s (|mu| + sigma), which moves xhat by s (d + 1)
    the variance             s sqrt(1 + d^2), relative: Welford's or two passes. One pass loses s (1 + d^2)

The growth with d is that of Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983). Everything
else is a few roundings of each term. No judgement lives here.
"""

from collections.abc import Mapping
from math import sqrt

import numpy as np

from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import Backward, Forward

__all__ = ["bounds"]

_ROUNDINGS = 8  # of each term: differences, products, a root and a division
_TINY = 2.0**-24  # the smallest float16: results below it may become 0


def bounds(
    p: Probe,
    f: Forward,
    b: Backward,
    correction: int,
    *,
    arithmetic: float,
    results: Mapping[str, float],
    sums: float | None = None,
    one_pass: bool = False,
) -> dict[str, Array]:
    """Output -> the bound of every value, for y, dx, dgamma, dbeta, mean, var and rstd.

    arithmetic: the unit roundoff of the kernel's arithmetic; results: that of the dtype of each output;
    sums: that of its sums, if it is another.
    one_pass: the bounds of a kernel whose variance is mean(x^2) - mu^2.
    """
    s = (_ROUNDINGS + 4 * sqrt(p.count())) * (arithmetic if sums is None else sums)
    of_mean, of_var = _of_moments(f, s, one_pass)
    of_rstd = f.rstd * (of_var * f.rstd**2 / 2 + 4 * arithmetic)  # drstd = rstd^3 dvar / 2
    relative = of_rstd / f.rstd + _ROUNDINGS * arithmetic
    offset = 2 * arithmetic * (np.abs(f.mu) + np.sqrt(f.var))
    of_xhat = (of_mean + offset) * f.rstd + relative * np.abs(f.xhat)
    total = p.total()
    dy, dy_xhat = np.abs(p.dy), np.abs(p.dy * f.xhat)
    of_sums = s * total(dy), s * total(dy_xhat) + total(dy * of_xhat)
    terms = np.abs(p.gamma * f.xhat) + np.abs(p.beta)
    found = {
        "y": np.abs(p.gamma) * of_xhat + 4 * arithmetic * terms,
        "dx": _of_dx(p, f, b, correction, of_xhat, of_sums, relative),
        "dgamma": of_sums[1],
        "dbeta": of_sums[0],
        "mean": of_mean,
        "var": of_var,
        "rstd": of_rstd,
    }
    exact = {"y": f.y, "dx": b.dx, "dgamma": b.dgamma, "dbeta": b.dbeta, "mean": f.mu, "var": f.var}
    exact["rstd"] = f.rstd
    # Two roundings of the result: one to a wider dtype before, or one that truncates.
    return {
        name: bound + results.get(name, arithmetic) * 2 * np.abs(exact[name]) + _TINY * results.get(name, 0.0)
        for name, bound in found.items()
    }


def _of_moments(f: Forward, s: float, one_pass: bool) -> tuple[Array, Array]:
    """The bounds of the mean and of the variance; 0 for moments that are given, since nothing is summed for them."""
    size = np.abs(f.mu) + np.sqrt(f.var)
    if f.variance_slope == 0:
        return 0 * size, 0 * size
    return s * size, s * (size**2 if one_pass else np.sqrt(f.var) * size) + (s * size) ** 2


def _of_dx(
    p: Probe,
    f: Forward,
    b: Backward,
    correction: int,
    of_xhat: Array,
    of_sums: tuple[Array, Array],
    relative: Array,
) -> Array:
    """The bound of dx = direct + mean + variance before it is rounded: every term may be off by `relative`."""
    terms = np.abs(b.direct) + np.abs(b.mean) + np.abs(b.variance)
    if f.variance_slope == 0:
        return np.asarray(relative * terms)
    m = float(p.count())
    scale = np.abs(p.gamma) * f.rstd
    through_mu = of_sums[0] / m
    through_var = (of_xhat * np.abs(b.dgamma) + np.abs(f.xhat) * of_sums[1]) / (m - correction)
    return np.asarray(relative * terms + scale * (through_mu + through_var))
