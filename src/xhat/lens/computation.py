"""The exact computation with a knob on everything that people get wrong; with no knob turned it is `equations`.

Nothing here knows the name of a mistake, or the code under test. A forward pass is the chain x -> mu, var -> rstd ->
xhat -> y with its local derivatives, so that the exact derivative of *that* forward, whatever its knobs, is at hand.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from xhat import equations
from xhat.lens.probes import Array, Probe

__all__ = ["EXACT", "Backward", "Forward", "Knobs", "backward", "forward"]


@dataclass(frozen=True)
class Knobs:
    """What can be turned. The defaults are the exact computation; the words are those of the mathematics.

    A sum is over "all" values of a channel, over the "batch" axis alone, or over the axes left when another axis is
    "mistaken" for the channels. A count is a divisor: "m" as it should be, "1" (a sum), "m - 1", or "batch" (the
    length of the batch axis). ``*_power`` and ``*_count`` in the backward are extra factors rstd^k and m^k.
    """

    # forward: mu, var
    mean_over: str = "all"
    mean_count: str = "m"
    variance_over: str = "all"
    variance_count: str = "m"
    variance_about: str = "mu"
    mean_from: str = "batch"
    variance_from: str = "batch"
    # forward: rstd, y
    eps: str = "inside"
    root: float = 0.5
    gamma: bool = True
    beta: bool = True
    # backward: the rstd and xhat that it uses
    backward_eps: str = "inside"
    backward_root: float = 0.5
    backward_where: str = "everywhere"
    backward_variance: str = "same"
    # backward: the three paths
    direct_kept: float = 1.0
    mean_kept: float = 1.0
    variance_kept: float = 1.0
    direct_source: str = "dxhat"
    mean_source: str = "dxhat"
    variance_source: str = "dxhat"
    direct_count: int = 0
    mean_count_power: int = 0
    variance_count_power: int = 0
    direct_power: int = 0
    mean_power: int = 0
    variance_power: int = 0
    mean_divisor: str = "m"
    variance_divisor: str = "m"
    mean_sum_over: str = "all"
    variance_sum_over: str = "all"
    all_count: int = 0
    all_power: int = 0
    # backward: the parameters
    dgamma_with: str = "xhat"
    dgamma_over: str = "all"
    dgamma_count: str = "sum"
    dgamma_of: str = "dy"
    dbeta_over: str = "all"
    dbeta_count: str = "sum"
    dbeta_of: str = "dy"


EXACT = Knobs()


class Forward(NamedTuple):
    """A forward pass and its local derivatives: dmu/dx, dvar/dx / (2 (x - mu)) and drstd/dvar."""

    mu: Array
    var: Array
    rstd: Array
    xhat: Array
    y: Array
    mean_slope: float
    variance_slope: float
    rstd_slope: Array


class Backward(NamedTuple):
    """A backward pass: the three paths and their sum dx, and the gradients of the parameters."""

    direct: Array
    mean: Array
    variance: Array
    dx: Array
    dgamma: Array
    dbeta: Array


def _divisor(p: Probe, over: str, count: str) -> float:
    """The number of values in a sum, or what it is taken for."""
    m = p.count(over)
    return {"m": m, "1": 1, "m - 1": m - 1, "batch": p.count("batch")}[count]


def _root(var: Array, eps: float, place: str, power: float) -> tuple[Array, Array]:
    """rstd and its derivative by var. power 1/2 is the root; 1 is none; -1/2 multiplies instead of dividing."""
    if place == "outside" and power == 0.5:
        std = np.sqrt(var)
        return 1 / (std + eps), -1 / (2 * std * (std + eps) ** 2)
    inside = var + (0.0 if place == "missing" else eps)
    if power == 0.5:
        rstd = equations.reciprocal_std(var, inside - var, np.sqrt)
        return rstd, -0.5 * rstd**3
    return inside**-power, -power * inside ** (-power - 1)


def forward(p: Probe, correction: int = 0, k: Knobs = EXACT) -> Forward:
    """The forward pass of a batch, with a knob on every step."""
    total_mu, total_var = p.total(k.mean_over), p.total(k.variance_over)
    mean_divisor = _divisor(p, k.mean_over, k.mean_count)
    mu = total_mu(p.x) / mean_divisor
    about = mu if k.variance_about == "mu" else 0.0
    variance_divisor = _divisor(p, k.variance_over, k.variance_count)
    variance_divisor -= correction if k.variance_count != "1" else 0
    var = equations.variance(total_var((p.x - about) ** 2), variance_divisor, 0)
    mean_slope, variance_slope = 1 / mean_divisor, 1 / variance_divisor
    if k.mean_from != "batch":
        mu, mean_slope = _running(p, p.running_mean, mu, k.mean_from), 0.0
    if k.variance_from != "batch":
        var, variance_slope = _running(p, p.running_var, var, k.variance_from), 0.0
    rstd, slope = _root(var, p.eps, k.eps, k.root)
    xhat = equations.standardize(p.x, mu, rstd)
    y = equations.normalize(p.x, mu, rstd, p.gamma if k.gamma else 1.0, p.beta if k.beta else 0.0)
    return Forward(mu, var, rstd, xhat, y, mean_slope, variance_slope, slope)


def _running(p: Probe, running: Array, batch: Array, when: str) -> Array:
    """The running statistic before the update, or after it (momentum is the weight of the batch)."""
    return running if when == "running" else (1 - p.momentum) * running + p.momentum * batch


def backward(p: Probe, f: Forward, correction: int, k: Knobs, forward_knobs: Knobs | None) -> Backward:
    """The backward pass. With forward_knobs: the exact derivative of the forward they made; without: the textbook's
    formulas on what that forward left (its mu, rstd and xhat), whatever it was."""
    rstd, xhat = f.rstd, f.xhat
    turned = (k.backward_eps, k.backward_root, k.backward_variance) != ("inside", 0.5, "same")
    other = rstd
    if turned:
        var = f.var * ((p.count() - correction) / _other_divisor(p, k.backward_variance, correction))
        other, _ = _root(var, p.eps, k.backward_eps, k.backward_root)
    if turned and k.backward_where in ("everywhere", "scale"):
        rstd = other
    if turned and k.backward_where == "everywhere":
        xhat = equations.standardize(p.x, f.mu, other)

    def paths(source: str) -> equations.Paths:
        dxhat = p.dy * p.gamma if source == "dxhat" else p.dy
        if forward_knobs is not None:
            return _chain(p, f, dxhat if forward_knobs.gamma else p.dy, forward_knobs)
        sum_mean, sum_variance = p.total(k.mean_sum_over)(dxhat), p.total(k.variance_sum_over)(dxhat * xhat)
        m = p.count()
        return equations.paths(dxhat, xhat, sum_mean, sum_variance, rstd=rstd, m=m, correction=correction)

    sources = {source: paths(source) for source in {k.direct_source, k.mean_source, k.variance_source}}
    dvar_factor = {"dvar": (other / rstd) ** 3, "dvar step": other / rstd}.get(k.backward_where, 1.0)
    m, overall = p.count(), float(p.count()) ** k.all_count * rstd**k.all_power
    direct = (
        sources[k.direct_source].direct * (k.direct_kept * float(m) ** k.direct_count) * rstd**k.direct_power
    )
    mean = sources[k.mean_source].mean * (k.mean_kept * float(m) ** k.mean_count_power) * rstd**k.mean_power
    through = sources[k.variance_source].variance * (k.variance_kept * float(m) ** k.variance_count_power)
    direct, mean = direct * overall, mean * overall * (m / _other_divisor(p, k.mean_divisor, 0))
    variance = through * overall * rstd**k.variance_power * dvar_factor
    variance = variance * ((m - correction) / _other_divisor(p, k.variance_divisor, correction))
    dgamma, dbeta = _parameters(p, f, k, xhat, forward_knobs)
    return Backward(direct, mean, variance, direct + mean + variance, dgamma, dbeta)


def _other_divisor(p: Probe, divisor: str, correction: int) -> float:
    """m - c as it should be, "other": m - (1 - c), "batch": with the length of the batch axis for m."""
    if divisor == "other":
        return p.count() - (1 - correction)
    return p.count("batch") - correction if divisor == "batch" else p.count() - correction


def _chain(p: Probe, f: Forward, dxhat: Array, k: Knobs) -> equations.Paths:
    """The three paths through the local derivatives of a forward pass: its exact gradient."""
    total_mu, total_var = p.total(k.mean_over), p.total(k.variance_over)
    centred = p.x - f.mu
    dvar = total_var(dxhat * centred) * f.rstd_slope
    about = p.x - (f.mu if k.variance_about == "mu" else 0.0)
    step = dvar * (2 * f.variance_slope) * about
    dmu = -total_mu(dxhat * f.rstd) - (total_mu(step) if k.variance_about == "mu" else 0.0)
    return equations.Paths(dxhat * f.rstd, np.broadcast_to(dmu * f.mean_slope, p.x.shape), step)


def _parameters(
    p: Probe, f: Forward, k: Knobs, xhat: Array, forward_knobs: Knobs | None
) -> tuple[Array, Array]:
    """dgamma = sum(dy xhat) and dbeta = sum(dy); the derivative by a parameter that was not used is zero."""
    factor = {"xhat": xhat, "x": p.x, "x - mu": p.x - f.mu}[k.dgamma_with]
    dgamma = p.total(k.dgamma_over)((p.dy if k.dgamma_of == "dy" else p.dy * p.gamma) * factor)
    dbeta = p.total(k.dbeta_over)(p.dy if k.dbeta_of == "dy" else p.dy * p.gamma)
    dgamma = dgamma / (p.count(k.dgamma_over) if k.dgamma_count == "mean" else 1)
    dbeta = dbeta / (p.count(k.dbeta_over) if k.dbeta_count == "mean" else 1)
    if forward_knobs is not None:
        dgamma, dbeta = dgamma * forward_knobs.gamma, dbeta * forward_knobs.beta
    return dgamma, dbeta
