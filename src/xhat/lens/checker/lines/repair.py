"""What a value would have to be so that a wrong output is right, and how that is said.

First what the variable's name says, then a factor for each channel, which one run tells if everything behind is linear,
then the exact steps one after the other.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from xhat.lens.checker.expected.exact import Steps
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.lines.experiment import Effect, Experiment, Outputs, Plan
from xhat.lens.checker.lines.values import Value, by_channel, cost, multiple_of

__all__ = ["Repair", "candidates", "described", "repair", "scaled", "shares", "times", "wanted"]

# A variable of this name (in lower case, without underscores) should be this step.
_STEPS = {
    "μ": "mu mean batchmean samplemean mub xmean",
    "σ²": "var variance sigma2 sigmasq batchvar samplevar",
    "√(σ² + ε)": "std stddev sqrtvar",
    "r": "rstd ivar invstd istd invvar invstddev r",
    "d√(σ² + ε)": "dsqrtvar dstd dstddev dsigma",
    "Σ dx̂ (x - μ)": "divar drstd dinvstd dinvvar divstd",
    "x̂": "xhat xnorm xn xnormalized normalized",
    "x - μ": "xmu xcentered xc centered xcentred",
    "dx̂": "dxhat dxnorm dxn dnorm dxnormalized gradxhat gradnorm",
    "dσ²": "dvar dvariance dsigma2 dsigmasq gradvar dldvar",
    "dμ": "dmu dmean gradmean dldmu",
    "Σ dy x̂": "dgamma dweight dscale ggamma gradgamma gradweight dw dg",
    "Σ dy": "dbeta dbias dshift gradbeta gradbias db",
}
_BY_NAME = {name: step for step, names in _STEPS.items() for name in names.split()}
_UNKNOWN = float("inf")


class Repair(NamedTuple):
    """A value, the plans that replace it, and what it then is; `strong` if that is an exact step."""

    value: Value
    plans: list[Plan]
    expected: str
    strong: bool


def wanted(value: Value, steps: Steps) -> str | None:
    """The step that a variable of this name should be, if a value of this kind can be it."""
    name = value.site.name.rpartition(".")[2].lower().replace("_", "")
    step = _BY_NAME.get(name)
    return step if step and value.kind != "number" and step in steps.of_kind(value.kind) else None


def repair(e: Experiment, value: Value, effect: Effect, first: str | None) -> Repair | None:
    """What this value has to be so that a wrong output is right; `first` is tried first. None if nothing repairs it."""
    if first is not None:
        exact = next((c for name, c in candidates(e, value) if name == first), None)
        plans = e.repaired(value, exact) if exact else []
        if plans:
            return Repair(value, plans, first, True)
    if value.names and value.kind != "number":
        return None
    found = scaled(e, value, effect)
    if found or not (value.site.name or value.site.role in ("result", "sum") or not value.is_array):
        return found
    # the steps of a forward have no gradient (no d) in their names
    steps = (c for c in candidates(e, value) if "y" not in effect.outputs or "d" not in c[0])
    tried = ((name, e.repaired(value, numbers)) for name, numbers in steps)
    return next((Repair(value, plans, name, True) for name, plans in tried if plans), None)


def candidates(e: Experiment, value: Value) -> Iterator[tuple[str, list[Array]]]:
    """The exact steps that may stand in the place of a value; for a value of another shape, in usual shapes."""
    first = e.steps[0]
    if value.kind == "number":
        for name in first.numbers:
            yield name, [np.asarray(s.numbers[name]) for s in e.steps]
    elif value.kind != "other":
        for name in first.of_kind(value.kind):
            yield name, [s.of_kind(value.kind)[name] for s in e.steps]
    else:
        dims = value.raw[0].ndim if value.raw[0].size > 1 else first.probe.x.ndim
        for name in first.by_channel:
            flat = [s.by_channel[name] for s in e.steps]
            yield name, [_wide(v, p) for v, p in zip(flat, e.batch, strict=True)] if dims > 1 else flat
        for name in first.whole if value.raw[0].ndim == 2 else ():
            rows = [by_channel(s.whole[name], s.probe) for s in e.steps]
            last = all(v.shape[-1] == p.channels for v, p in zip(value.raw, e.batch, strict=True))
            yield name, [r.T if last else r for r in rows]


def _wide(numbers: Array, p: Probe) -> Array:
    shape = [1] * p.x.ndim
    shape[p.layout.axis] = p.channels
    return numbers.reshape(shape)


# ---------------------------------------------------------------------------------------------- factors


def scaled(e: Experiment, value: Value, effect: Effect) -> Repair | None:
    """A repair by a factor for each channel, if it makes the value an exact step, or at least a simpler one."""
    if value.kind == "other" or len(effect.slopes) < len(e.batch):
        return None
    for o in sorted(e.wrong & effect.outputs):
        added = [shares(e, k, o, [effect.slopes[k]]) for k in range(len(e.batch))]
        if any(s is None for s in added):
            continue
        factors = [1 + s[:, 0] for s in added if s is not None]
        if value.kind == "number" and any(np.ptp(f) > 1e-6 * np.abs(f).max() for f in factors):
            continue
        numbers = [times(value, k, f, p) for k, (f, p) in enumerate(zip(factors, e.batch, strict=True))]
        plans = e.repaired(value, numbers)
        if not plans:
            continue
        expected, far = described(e, numbers, value.kind)
        if far == 0 or far < described(e, value.numbers, value.kind)[1]:
            return Repair(value, plans, expected, far == 0)
    return None


def shares(e: Experiment, k: int, o: str, slopes: list[Outputs]) -> Array | None:
    """The share of each value that has to be added for output o, by channel: error = sum of share x slope."""
    p, exact, base = e.batch[k], e.exact[k][o], e.plain[k][o]
    if base.size != exact.size:
        return None
    error = by_channel(exact - base.reshape(exact.shape), p)
    rows = np.array([by_channel(s[o].reshape(exact.shape), p) for s in slopes])
    if not np.isfinite(rows).all() or not np.isfinite(error).all():
        return None
    found = np.array([np.linalg.lstsq(rows[:, c].T, error[c], rcond=1e-9)[0] for c in range(p.channels)])
    fitted = np.einsum("cs,scj->cj", found, rows)
    near = 100 * e.tolerance * max(float(np.abs(exact).max()), float(np.abs(base).max()))
    return found if np.abs(fitted - error).max() <= near else None


def times(value: Value, k: int, factors: Array, p: Probe) -> Array:
    """The value on batch k, each channel times its factor."""
    numbers = value.numbers[k]
    if value.kind == "number":
        return np.asarray(numbers * factors[0])
    return numbers * (factors if value.kind == "by channel" else _wide(factors, p))


def described(e: Experiment, numbers: list[Array], kind: str) -> tuple[str, float]:
    """What numbers are in words, and how far from a step: 0 for a step, more for a multiple, infinity for neither."""
    near = 100 * e.tolerance
    if kind == "number":
        for name in e.steps[0].numbers:
            exact = [s.numbers[name] for s in e.steps]
            if all(abs(float(n) - x) <= near * abs(x) for n, x in zip(numbers, exact, strict=True)):
                return name, 0.0
        return f"{float(numbers[0]):.6g}", _UNKNOWN
    found = multiple_of(numbers, e.steps, e.scales, near)
    if found is None:
        return "none of the exact values", _UNKNOWN
    factor, step = found
    far = cost(factor)
    if not far:
        return step, far
    is_sum = (" - " in step or " + " in step) and step[0] not in "(√"
    shown = f"({step})" if is_sum else step
    return (f"{factor} × {shown}" if factor.number != -1 or factor.powers else f"-{shown}"), far
