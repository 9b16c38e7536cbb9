"""Checks the statistics of the code under test: its running statistics, and those that a forward returns.

A running statistic is updated by running' = (1 - k) running + k batch; its weight k is solved for, however the code
writes the update. A returned variance may be the variance itself (with N or N - 1), a standard deviation or rstd.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from xhat.lens.checker.calling.runs import RunResult
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import EXACT, Faults, Forward
from xhat.lens.checker.verdict import Row

__all__ = ["Expected", "RunningStatistics", "check_returned", "check_running"]

_NEAR = 0.02  # weights this close are equal in any precision; the probes have momentum 0.3, or 0.7 reversed
_LEAST = 1e-4  # a smaller weight of the batch is no update
# Consistent pairs: (correction of the forward, correction of the running variance).
_ACCEPTED = ((0, 0), (0, 1), (1, 1))


@dataclass(frozen=True)
class Expected:
    """The required conventions; None accepts any consistent one."""

    correction: int | None = None
    running_correction: int | None = None
    momentum: str | None = None  # the weight of the "batch" (PyTorch) or of the "running" statistic (Keras)


@dataclass
class RunningStatistics:
    """Conventions found, mistakes as (name, output), and sentences about errors without a name."""

    conventions: dict[str, str] = field(default_factory=dict)
    mistakes: list[tuple[str, str]] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)


class Update(NamedTuple):
    """The weight k of the batch, and the error of the update with this k."""

    weight: float
    error: float


def solve_weight(before: list[Array], batch: list[Array], after: list[Array]) -> Update:
    """The k that fits running' = (1 - k) running + k batch best on all probes."""
    start, end, new = (np.concatenate([a.ravel() for a in arrays]) for arrays in (before, after, batch))
    step, moved = new - start, end - start
    k = float(step @ moved / (step @ step))
    return Update(k, float(np.abs(moved - k * step).max() / max(np.abs(start).max(), np.abs(step).max())))


def check_running(
    probes: tuple[Probe, ...],
    runs: list[RunResult],
    plain: RunResult | None,
    correction: int,
    faults: Faults,
    expected: Expected,
    tolerance: float,
) -> RunningStatistics:
    """Check running_mean and running_var. `plain` is a run on the first probe with the default momentum of the code."""
    found = RunningStatistics()
    k_mean, k_var = None, None
    # The statistics of the forward with its mistakes, or the exact ones if the code computes these separately.
    states = [s for k in (faults, Faults()) if (s := _states(probes, correction, k))]
    if all("running_mean" in s.running for s in runs):
        before, after = [p.running_mean for p in probes], [s.running["running_mean"] for s in runs]
        best = min(
            (solve_weight(before, [f.mu for f in s], after) for s in states), key=lambda found: found.error
        )
        k_mean = best.weight if best.error <= tolerance else None
        if k_mean is None:
            found.unnamed.append("running_mean is no average of the running mean and the batch's")
    if all("running_var" in s.running for s in runs):
        k_var = _variance_weight(found, probes, runs, states, correction, expected, tolerance)
    batch = [f.mu for f in states[0]], _variances(probes, states[0], correction, 0)
    _momentum(found, probes, plain, (k_mean, k_var), batch, expected)
    return found


def _variance_weight(
    found: RunningStatistics,
    probes: tuple[Probe, ...],
    runs: list[RunResult],
    states: list[list[Forward]],
    correction: int,
    expected: Expected,
    tolerance: float,
) -> float | None:
    """The weight of the batch in running_var, with the correction, or the root, that fits best."""
    before, after = [p.running_var for p in probes], [s.running["running_var"] for s in runs]
    fits = {
        (i, c, power): solve_weight(before, _variances(probes, s, correction, c, power), after)
        for i, s in enumerate(states)
        for c in (0, 1)
        for power in (1.0, 0.5)
    }
    (_, running_correction, power), best = min(fits.items(), key=lambda item: item[1].error)
    if best.error > tolerance:
        found.unnamed.append(
            "running_var is no average of the running variance and the batch's, with N or N - 1"
        )
        return None
    if power == 1:
        _correction(found, correction, running_correction, expected)
    else:
        found.mistakes.append(("standard deviation stored as the running variance", "running_var"))
    return best.weight


def _states(probes: tuple[Probe, ...], correction: int, faults: Faults) -> list[Forward]:
    """The statistics of every probe; empty if their shape is not that of the channels."""
    states = [reference.forward(p, correction, faults) for p in probes]
    have_shape = all(f.mu.size == f.var.size == p.channels for f, p in zip(states, probes, strict=True))
    return states if have_shape else []


def _variances(
    probes: tuple[Probe, ...], states: list[Forward], ours: int, other: int, power: float = 1.0
) -> list[Array]:
    return [
        np.asarray((f.var * ((p.count() - ours) / (p.count() - other))) ** power)
        for p, f in zip(probes, states, strict=True)
    ]


def _correction(found: RunningStatistics, correction: int, running: int, expected: Expected) -> None:
    found.conventions["running variance"] = "N - 1" if running else "N"
    wanted = expected.running_correction
    if (wanted is not None and running != wanted) or (
        wanted is None and (correction, running) not in _ACCEPTED
    ):
        found.mistakes.append(("running variance with the other correction", "running_var"))


def _momentum(
    found: RunningStatistics,
    probes: tuple[Probe, ...],
    plain: RunResult | None,
    weights: tuple[float | None, float | None],
    batch: tuple[list[Array], list[Array]],
    expected: Expected,
) -> None:
    """The sense of momentum: k = momentum (PyTorch) or k = 1 - momentum (Keras). By default k should be below 1/2."""
    given = probes[0].momentum
    senses = {"batch": given, "running": 1 - given}
    for i, (name, k) in enumerate(zip(("running_mean", "running_var"), weights, strict=True)):
        if k is None:
            continue
        sense = next((s for s, value in senses.items() if abs(value - k) < _NEAR), None)
        default = _default_weight(probes[0], plain, name, batch[i][0])
        if sense is None and abs(k) < _LEAST:
            found.unnamed.append(f"{name} is not updated by the batch")
            continue
        words = {
            "batch": "weight of the batch",
            "running": "weight of the past",
            None: f"fixed, batch weighs {k:.3g}",
        }
        key = (
            "momentum"
            if found.conventions.get("momentum", words[sense]) == words[sense]
            else "momentum of running_var"
        )
        found.conventions[key] = words[sense]
        unlikely = (default if default is not None else k if sense is None else 0.0) > 0.5
        if unlikely if expected.momentum is None else sense not in (expected.momentum, None):
            found.mistakes.append(("momentum reversed", name))
        elif key != "momentum":
            found.mistakes.append(("momentum reversed", "running_mean or running_var: they differ"))


def _default_weight(p: Probe, plain: RunResult | None, name: str, batch: Array) -> float | None:
    """The weight of the batch with the default momentum of the code."""
    if plain is None or name not in plain.running:
        return None
    return solve_weight([getattr(p, name)], [batch], [plain.running[name]]).weight


def _interpretations(name: str, p: Probe, f: Forward, correction: int) -> dict[str, Array]:
    """Everything that a statistic of this name may be: description -> value."""
    if name == "mean":
        return {"": f.mu}
    other = f.var * ((p.count() - correction) / (p.count() - (1 - correction)))
    unbiased, biased = (other, f.var) if correction == 0 else (f.var, other)
    return {
        "with N": biased,
        "with N - 1": unbiased,
        "it is rstd": f.rstd,
        "it is sqrt(var + eps)": 1 / f.rstd,
        "it is sqrt(var)": np.sqrt(f.var),
        "it is var + eps": f.var + p.eps,
    }


def check_returned(
    probes: tuple[Probe, ...],
    runs: list[RunResult],
    correction: int,
    faults: Faults,
    names: str,
    tolerance: float,
) -> tuple[list[Row], list[str]]:
    """Rows for the returned mean and variance, and sentences about errors. `names`: the mistakes of the forward."""
    rows: list[Row] = []
    unnamed: list[str] = []
    for name in ("mean", "var"):
        if not all(name in s.extra for s in runs):
            continue
        after = [s.extra[name] for s in runs]
        right, mistaken = (_interpret(name, probes, after, correction, k, tolerance) for k in (EXACT, faults))
        if right is not None:
            rows.append(Row(f"returned {name}", True, None, right))
        elif mistaken is not None:
            rows.append(Row(f"returned {name}", False, None, names))
        elif all(s.named for s in runs):
            rows.append(Row(f"returned {name}", False, None, "no known mistake explains it"))
            unnamed.append(f"the returned {name} is no statistic of the batch")
    return rows, unnamed


def _interpret(
    name: str, probes: tuple[Probe, ...], runs: list[Array], correction: int, faults: Faults, tolerance: float
) -> str | None:
    """The description of the statistic that equals the returned values on every probe."""
    options = [
        _interpretations(name, p, reference.forward(p, correction, faults), correction) for p in probes
    ]
    for description in options[0]:
        pairs = [(o[description].ravel(), s.ravel()) for o, s in zip(options, runs, strict=True)]
        if all(a.size == b.size and np.abs(a - b).max() <= tolerance * np.abs(a).max() for a, b in pairs):
            return description
    return None
