"""Judges the running statistics of the code under test on the probes of a fit."""

from contextlib import suppress
from dataclasses import replace

import numpy as np

from xhat.lens.checker.calling.adapter import Unjudged, takes
from xhat.lens.checker.calling.runs import Mode
from xhat.lens.checker.diagnosis.fit import Fit
from xhat.lens.checker.diagnosis.record import Diagnosis, named
from xhat.lens.checker.diagnosis.statistics import Expected, RunningStatistics, check_running, solve_weight
from xhat.lens.checker.faults import Mistake, sets_of, with_faults
from xhat.lens.checker.verdict import Row

__all__ = ["judge_running"]

_SOURCES = ("running_mean", "running_var")
_NEVER, _USED = "running statistics never stored", "running statistic used in training"
_NEAR = 0.02


def judge_running(fit: Fit, diagnosis: Diagnosis, expected: Expected) -> None:
    """Add a row for each running statistic: its average, its correction, and the sense of momentum."""
    runs = fit.runs[0]
    if fit.runner.forward is None:
        return
    _judge_stored(fit, diagnosis)
    if not any(s.running for s in runs):
        return
    if any(v.size != fit.batch[i].channels for i, s in enumerate(runs) for v in s.running.values()):
        shape = next(v.shape for s in runs for v in s.running.values())
        diagnosis.unnamed.append(f"the running statistics have another shape than the channels: {shape}")
        return
    found = _checked(fit, expected)
    if any(name == "momentum reversed" for name, _ in found.mistakes):
        _accept_other_averages(fit, found)
    diagnosis.conventions |= found.conventions
    diagnosis.unnamed += found.unnamed
    for name in dict.fromkeys(name for name, _ in found.mistakes):
        diagnosis.mistakes.append(named(name, *(output for n, output in found.mistakes if n == name)))
    for output in sorted({name for s in runs for name in s.running}):
        names = [name for name, where in found.mistakes if output in where]
        is_unnamed = any(text.startswith(output) for text in found.unnamed)
        diagnosis.rows.append(Row(output, not names and not is_unnamed, None, ", ".join(names)))


def _checked(fit: Fit, expected: Expected) -> RunningStatistics:
    """The running statistics of the batch's, or of mistaken ones that y does not use."""
    e, runs = fit.best[0], fit.runs[0]
    # The update uses the statistics of the batch, even if the forward normalizes with the running ones.
    faults = replace(with_faults(e.forward), mean_from="batch", variance_from="batch")
    plain = None
    if fit.runner.takes("momentum", "options"):
        with suppress(Unjudged):  # momentum may have no default in the code
            plain = fit.runner.run(fit.batch[0], e.correction, mode=Mode(momentum=False, gradients=False))
    given = (fit.batch, runs, plain, e.correction)
    found = check_running(*given, faults, expected, fit.tolerance)
    if found.unnamed:
        for mistake in (one for (one,) in sets_of("y", 1, fit.batch[0].traits) if _is_of_statistics(one)):
            other = check_running(*given, with_faults((mistake,)), expected, fit.tolerance)
            if not other.unnamed:
                other.mistakes.append((mistake.name, "running_mean and running_var"))
                return other
    return found


def _judge_stored(fit: Fit, diagnosis: Diagnosis) -> None:
    """A running statistic that the code reads and never changes: wrong if it has a mode, else not judged."""
    runner, runs = fit.runner, fit.runs[0]
    read = set.union(*(s.read for s in runs))
    taken = [q for q in _SOURCES if takes(runner.forward, runner.adapter, q) or q in read]
    missing = [q for q in taken if not any(q in s.running for s in runs)]
    missing = [q for q in missing if q not in getattr(runner.forward, "guessed", ())]
    if not missing or any(m.name == _USED for e in fit.best for m in e.forward):
        return
    if runner.takes("training", "evaluation", "mode") or "mode" in read:
        diagnosis.mistakes.append(named(_NEVER, *missing))
        diagnosis.rows += [Row(q, False, None, _NEVER) for q in missing]
    else:
        why = "it is given and never changed, and the code has no mode"
        diagnosis.rows += [Row(q, None, None, why) for q in missing]


def _accept_other_averages(fit: Fit, found: RunningStatistics) -> None:
    """Withdraw "momentum reversed" for a cumulative average, and for attributes that hold the batch's statistics."""
    cumulative = _second_weight(fit)
    if cumulative is not None and abs(cumulative - 0.5) < _NEAR:
        found.conventions["momentum"] = "cumulative average (first weight 1)"
    elif not getattr(fit.runner.forward, "guessed", None):
        return
    found.mistakes = [(name, where) for name, where in found.mistakes if name != "momentum reversed"]


def _second_weight(fit: Fit) -> float | None:
    """The weight of the batch in a second call that continues the first; None if the first weight is not 1."""
    p, q = fit.batch[0], replace(fit.batch[0], x=2 * fit.batch[0].x + 1)
    try:
        first, second = fit.runner.run_twice(p, q)
    except Unjudged:
        return None
    mean = p.total()(p.x).ravel() / p.count()
    if first is None or second is None or np.abs(first - mean).max() > 1e-4 * np.abs(mean).max():
        return None
    return solve_weight([first], [2 * mean + 1], [second]).weight


def _is_of_statistics(mistake: Mistake) -> bool:
    return all(
        fault.startswith(("mean_", "variance_")) and not fault.endswith("_from")
        for fault, _ in mistake.faults
    )
