"""The exact forward and backward pass, with an optional fault in every step; without faults it equals `equations`.

The names of mistakes are in `faults`, and the code under test is run by `runner`. A forward pass is the chain
x -> mu, var -> rstd -> xhat -> y together with its local derivatives, so that the exact derivative of a forward with
faults is available too.
"""

from dataclasses import replace

import numpy as np

from xhat import equations
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import CLOSED, EXACT, Backward, Faults, Formulation, Forward

__all__ = ["affine", "backward", "forward"]

# The rstd and xhat of a backward, and factors of its direct path and of its dL/dvar.
Root = tuple[Array, Array, Array | float, Array | float]
_NOT_NEEDED = np.zeros(())


def _divisor(p: Probe, over: str, count: str) -> float:
    """The divisor of a sum: the number of its elements, or a wrong count."""
    m = p.count(over)
    return {"m": m, "1": 1, "m - 1": m - 1, "batch": p.count("batch"), "every": p.count()}[count]


def _root(var: Array, eps: float, place: str | float, power: float) -> tuple[Array, Array]:
    """rstd and its derivative by var. power: 1/2 is a root, 1 no root; negative powers multiply instead of dividing.

    place: "inside" or "outside" the root, "missing", or another eps inside the root.
    """
    eps = place if isinstance(place, float) else eps
    if place == "outside" and power == 0.5:
        std = np.sqrt(var)
        return 1 / (std + eps), -1 / (2 * std * (std + eps) ** 2)
    inside = var + (0.0 if place == "missing" else eps)
    if place == "outside" and power == 0.25:
        std = np.sqrt(var)
        return (std + eps) ** -0.5, -((std + eps) ** -1.5) / (4 * std)
    if power == 0.5:
        rstd = equations.reciprocal_std(var, inside - var, np.sqrt)
        return rstd, -0.5 * rstd**3
    return inside**-power, -power * inside ** (-power - 1)


def affine(p: Probe, k: Faults) -> tuple[Array | float, Array | float]:
    """The scale and the shift of a forward with faults k."""
    shift = p.beta * p.gamma if k.beta_times == "gamma" else p.beta
    return p.gamma if k.gamma else 1.0, shift if k.beta else 0.0


def forward(p: Probe, correction: int = 0, k: Faults = EXACT) -> Forward:
    """The forward pass of a batch with faults k."""
    if k.grouping == "reshaped":
        f = forward(p.reshaped(), correction, replace(k, grouping="channels"))
        return f._replace(xhat=f.xhat.reshape(p.x.shape), y=f.y.reshape(p.x.shape))
    total_mu, total_var = p.total(k.mean_over), p.total(k.variance_over)
    mean_divisor = _divisor(p, k.mean_over, k.mean_count)
    mu = total_mu(p.x) / mean_divisor
    about = mu if k.variance_about == "mu" else 0.0
    if k.mean_over == "crossed":  # deviations from the mean of the summed axis, before it is transposed
        about = p.total("mistaken")(p.x) / mean_divisor
    variance_divisor = _divisor(p, k.variance_over, k.variance_count)
    variance_divisor -= correction if k.variance_count != "1" else 0
    var = equations.variance(total_var((p.x - about) ** 2), variance_divisor, 0)
    if k.variance_form == "one pass":
        var = equations.variance(total_var(p.x**2) - p.count(k.variance_over) * mu**2, variance_divisor, 0)
    mean_slope, variance_slope = 1 / mean_divisor, 1 / (variance_divisor or np.nan)
    if k.mean_from != "batch":
        mu, mean_slope = _running(p, p.running_mean, mu, k.mean_from), 0.0
    if k.variance_from != "batch":
        count = p.count() - int(k.variance_from.endswith("N - 1"))
        batch_var = var * (p.count() - correction) / count
        var, variance_slope = _running(p, p.running_var, batch_var, k.variance_from), 0.0
    rstd, slope = _root(var, p.eps, k.eps, k.root)
    xhat = equations.standardize(p.x, mu, rstd)
    y = equations.normalize(p.x, mu, rstd, *affine(p, k))
    return Forward(mu, var, rstd, xhat, y, mean_slope, variance_slope, slope)


def _running(p: Probe, running: Array, batch: Array, when: str) -> Array:
    """The running statistic before the update, or after it; momentum is the weight of the batch, or of the past."""
    weight = {"run": 0.0, "new": p.momentum, "old": 1 - p.momentum}[when[:3]]
    return (1 - weight) * running + weight * batch


def backward(
    p: Probe,
    f: Forward,
    correction: int,
    k: Faults,
    formulation: Formulation = CLOSED,
    forward_faults: Faults = EXACT,
    only: str | None = None,
) -> Backward:
    """The backward pass with faults k, in one formulation, of the forward f that has `forward_faults`.

    only: the one output that is needed, "dx", "dgamma" or "dbeta"; the others may then be any number.
    """
    if "reshaped" in (k.backward_grouping, forward_faults.grouping):
        return _regrouped(p, correction, k, formulation, forward_faults)
    root = _own_root(p, f, correction, k, formulation)
    of_x, of_parameters = (_NOT_NEEDED,) * 4, (_NOT_NEEDED,) * 2
    if only in (None, "dx"):
        of_x = _paths(p, f, correction, k, formulation, forward_faults, root)
    if only != "dx":
        followed = forward_faults if formulation.style == "derivative" else EXACT
        of_parameters = _parameters(p, f, k, root[1], followed)
    return Backward(*of_x, *of_parameters)


def _paths(
    p: Probe,
    f: Forward,
    correction: int,
    k: Faults,
    formulation: Formulation,
    forward_faults: Faults,
    root: Root,
) -> tuple[Array, Array, Array, Array]:
    """The direct path, the mean path, the variance path, and their sum dx."""
    rstd, xhat, own_direct, dvar_factor = root
    direct_factor, mean_factor, variance_factor, overall = _factors(p, rstd, correction, k)
    variance_factor = variance_factor * dvar_factor
    zero_factor = variance_factor if formulation.style == "nodes, followed" else 1.0
    m = float(p.count())

    def paths(source: str) -> tuple[Array, Array, Array]:
        dxhat = p.dy * p.gamma ** {"dy": 0, "dxhat": 1, "dxhat gamma": 2}[source]
        if formulation.style == "closed":
            return _closed(p, dxhat, xhat, rstd, p.x - f.mu, correction, k)
        if formulation.style == "terms":
            through_mu, dvar = -rstd * p.total()(dxhat) / m, -(rstd**3) * p.total()(dxhat * (p.x - f.mu))
            return dxhat * rstd, through_mu, dvar * (p.x - f.mu) / (m - correction)
        if formulation.style == "derivative":
            start = dxhat if forward_faults.gamma else p.dy
            direct, through_mu, zero, variance = _chain(p, f, start, forward_faults)
        else:
            saved = Forward(f.mu, f.var, rstd, xhat, f.y, 1 / m, 1 / (m - correction), -0.5 * rstd**3)
            direct, through_mu, zero, variance = _chain(p, saved, dxhat, EXACT)
        return direct, through_mu + zero * zero_factor, variance

    sources = {source: paths(source) for source in {k.direct_source, k.mean_source, k.variance_source}}
    direct = sources[k.direct_source][0] * direct_factor * own_direct * overall
    mean = sources[k.mean_source][1] * mean_factor * overall
    variance = sources[k.variance_source][2] * variance_factor * overall
    dx = direct + mean + variance
    if k.dx_grouping == "reshaped":
        dx = np.moveaxis(dx, p.layout.axis, -1).reshape(p.x.shape)
    return direct, mean, variance, dx


def _closed(
    p: Probe, dxhat: Array, xhat: Array, rstd: Array, deviation: Array, correction: int, k: Faults
) -> tuple[Array, Array, Array]:
    """The paths in the closed form, whose sums may be over other axes and of other terms.

    Where a sum is over several channels, it matters which factors stand inside it.
    """
    inside = p.dy if k.gamma_at == "the end" else dxhat
    gamma = p.gamma if k.gamma_at == "the end" else 1.0
    terms: dict[str, tuple[Array | float, Array | float]]
    terms = {"1": (1.0, 1.0), "rstd": (rstd, 1 / rstd), "xhat": (xhat, 1.0), "x - mu": (deviation, rstd)}
    (a, outside_a), (b, outside_b) = terms[k.mean_sum_with], terms[k.variance_sum_with]
    of_mean = p.total(k.mean_sum_over)(inside * a) * outside_a * gamma
    of_variance = p.total(k.variance_sum_over)(inside * b) * outside_b * gamma
    along = xhat if k.variance_along == "xhat" else np.ones_like(xhat)
    return equations.paths(
        dxhat, along, of_mean, of_variance, rstd=rstd, m=float(p.count()), correction=correction
    )


def _regrouped(
    p: Probe, correction: int, k: Faults, formulation: Formulation, forward_faults: Faults
) -> Backward:
    """The backward pass where it, or the forward that it is the derivative of, takes other values for a channel."""
    plain, own = replace(forward_faults, grouping="channels"), replace(k, backward_grouping="channels")
    if (
        k.backward_grouping == "channels" and formulation.style != "derivative"
    ):  # from x, not from the forward
        return backward(p, forward(p, correction, plain), correction, own, formulation, plain)
    q = p.reshaped()
    b = backward(q, forward(q, correction, plain), correction, own, formulation, plain)
    parts = {name: getattr(b, name) for name in ("direct", "mean", "variance", "dx")}
    wide = {name: np.broadcast_to(part, q.x.shape).reshape(p.x.shape) for name, part in parts.items()}
    return b._replace(**wide)


def _own_root(p: Probe, f: Forward, correction: int, k: Faults, formulation: Formulation) -> Root:
    """The rstd and xhat of a backward, and factors of the direct path and of dL/dvar if only they use another root."""
    has_fault = (k.backward_eps, k.backward_root, k.backward_variance) != ("inside", 0.5, "same")
    where = k.backward_where if has_fault else formulation.own
    if not where:
        return f.rstd, f.xhat, 1.0, 1.0
    var = f.var * ((p.count() - correction) / _other_divisor(p, k.backward_variance, correction))
    if k.backward_variance[:3] in ("run", "new", "old"):
        count = p.count() - int(k.backward_variance.endswith("N - 1"))
        var = _running(p, p.running_var, f.var * (p.count() - correction) / count, k.backward_variance)
    own, _ = _root(var, p.eps, k.backward_eps, k.backward_root)
    if where == "everywhere":
        return own, equations.standardize(p.x, f.mu, own), 1.0, 1.0
    if where == "scale":
        return own, f.xhat, 1.0, 1.0
    if where == "direct":
        return f.rstd, f.xhat, own / f.rstd, 1.0
    return f.rstd, f.xhat, 1.0, (own / f.rstd) ** (3 if where == "dvar" else 1)


def _factors(p: Probe, rstd: Array, correction: int, k: Faults) -> tuple[Array, Array, Array, Array]:
    """The wrong factors of the direct, mean and variance paths, and of their sum."""
    m = float(p.count())
    direct = k.direct_sign * k.direct_kept * m**k.direct_count * rstd**k.direct_power
    mean = k.mean_sign * k.mean_kept * rstd**k.mean_power * m**k.mean_count_power
    mean = mean * (m / _other_divisor(p, k.mean_divisor, 0))
    variance = k.variance_sign * k.variance_factor * k.variance_kept * rstd**k.variance_power
    variance = variance * m**k.variance_count_power
    variance = variance * ((m - correction) / _other_divisor(p, k.variance_divisor, correction))
    return direct, mean, variance, m**k.all_count * rstd**k.all_power


def _other_divisor(p: Probe, divisor: str, correction: int) -> float:
    """m - c (correct); "other": m - (1 - c); or m counts "channels", or "batch" or "everything"."""
    if divisor == "other":
        return p.count() - (1 - correction)
    if divisor == "channels":
        return p.channels - correction
    return (p.count(divisor) if divisor in ("batch", "everything") else p.count()) - correction


def _chain(p: Probe, f: Forward, dxhat: Array, k: Faults) -> tuple[Array, Array, Array, Array]:
    """The paths of dx from local derivatives: direct, through mu, from var through mu (0 if mu is the mean), through
    var."""
    total_mu, total_var = p.total(k.mean_over), p.total(k.variance_over)
    dvar = total_var(dxhat * (p.x - f.mu)) * f.rstd_slope
    one_pass = k.variance_form == "one pass"
    about = p.x if one_pass or k.variance_about == "0" else p.x - f.mu
    step = dvar * (2 * f.variance_slope) * about
    through_mu = -total_mu(dxhat * f.rstd) * f.mean_slope
    if one_pass:  # var = sum(x^2) / m - mu^2
        zero = -2 * f.mu * dvar * f.variance_slope * p.count(k.variance_over) * f.mean_slope
    else:
        zero = -total_mu(step) * f.mean_slope if k.variance_about == "mu" else np.zeros_like(through_mu)
    return dxhat * f.rstd, through_mu, zero, step


def _parameters(p: Probe, f: Forward, k: Faults, xhat: Array, forward_faults: Faults) -> tuple[Array, Array]:
    """dgamma = sum(dy xhat), dbeta = sum(dy); 0 for a parameter that the forward forgot."""
    factors = {"xhat": xhat, "x": p.x, "x - mu": p.x - f.mu, "y": f.y, "1": np.ones_like(xhat)}
    factor = factors[k.dgamma_with]
    dgamma = p.total(k.dgamma_over)((p.dy if k.dgamma_of == "dy" else p.dy * p.gamma) * factor)
    dbeta = p.total(k.dbeta_over)((p.dy if k.dbeta_of == "dy" else p.dy * p.gamma) * factors[k.dbeta_with])
    dgamma = dgamma / (p.count(k.dgamma_over) if k.dgamma_count == "mean" else 1)
    dbeta = dbeta / (p.count(k.dbeta_over) if k.dbeta_count == "mean" else 1)
    dgamma, dbeta = (np.broadcast_to(d, p.gamma.shape) if d.size == 1 else d for d in (dgamma, dbeta))
    if forward_faults.beta_times == "gamma":
        dgamma, dbeta = dgamma + p.beta * dbeta, dbeta * p.gamma
    return dgamma * forward_faults.gamma, dbeta * forward_faults.beta
