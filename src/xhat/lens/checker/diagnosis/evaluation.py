"""Judges evaluation: y = gamma (x - running_mean) (running_var + eps)^(-1/2) + beta, with the code's own conventions.

The search is that of training over fewer mistakes: which statistics, eps and its place, the root, gamma and beta.
"""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.calling.runs import Mode, RunResult
from xhat.lens.checker.diagnosis.fit import Fit
from xhat.lens.checker.diagnosis.record import Diagnosis, named
from xhat.lens.checker.diagnosis.search import BACKWARD, flat
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.probes import Array
from xhat.lens.checker.expected.steps import DERIVATIVE, EXACT, Backward, Faults, Forward
from xhat.lens.checker.faults import Mistake, compatible
from xhat.lens.checker.faults.evaluation import EVALUATION, NORMALIZED
from xhat.lens.checker.verdict import Row

__all__ = ["judge_evaluation"]

_WORDS = ("test", "eval", "inference")
_UPDATED = "running statistics updated in evaluation"
_SOURCES = ("running_mean", "running_var")
_MISTAKES = tuple(
    Mistake(name, line, remedy, tuple(way.items())) for name, line, remedy, ways in EVALUATION for way in ways
)


def judge_evaluation(fit: Fit, diagnosis: Diagnosis) -> None:
    """Add the rows and mistakes of evaluation, or the reason why there are none."""
    runner = fit.runner
    if runner.forward is None:
        return
    has_mode = runner.takes("training", "evaluation", "mode") or any("mode" in s.read for s in fit.runs[0])
    if not has_mode:
        diagnosis.not_judged.append("evaluation (the code has no mode)")
        return
    try:
        runs = _runs(fit)
    except Unjudged as problem:
        diagnosis.rows.append(Row("y (evaluation)", None, None, str(problem)))
        return
    if not (runner.takes(*_SOURCES) or any(set(_SOURCES) & s.read for s in runs)):
        _judge_without_statistics(fit, runs, diagnosis)
        return
    found = _explain(fit, runs)
    _add_rows(fit, runs, found, diagnosis)


def _runs(fit: Fit) -> list[RunResult]:
    """One run in evaluation for each probe, with the first word for it that the code takes."""
    reason: Unjudged | None = None
    for word in _WORDS:
        try:
            runs = [fit.runner.run(p, mode=Mode(training=False, word=word)) for p in fit.batch]
        except Unjudged as problem:
            reason = reason or problem
            continue
        if reason is not None and _same(fit, runs):  # the word means training: the first one was evaluation
            break
        return runs
    assert reason is not None
    raise reason


def _same(fit: Fit, runs: list[RunResult]) -> bool:
    """Whether y is that of training."""
    pairs = zip(fit.runs[0], runs, strict=True)
    return all(np.allclose(a.outputs["y"], b.outputs["y"], rtol=1e-12, atol=0) for a, b in pairs)


def _judge_without_statistics(fit: Fit, runs: list[RunResult], diagnosis: Diagnosis) -> None:
    if _same(fit, runs):
        diagnosis.not_judged.append("evaluation (the code keeps no running statistics)")
        return
    why = "the running statistics that it uses have no known name, and could not be set"
    diagnosis.rows.append(Row("y (evaluation)", None, None, why))


def _candidates() -> Iterator[tuple[Mistake, ...]]:
    yield from (chosen for size in range(4) for chosen in combinations(_MISTAKES, size) if compatible(chosen))


def _faults(chosen: tuple[Mistake, ...]) -> Faults:
    values = {fault: value for mistake in chosen for fault, value in mistake.faults}
    return Faults(**(NORMALIZED | values))


def _states(fit: Fit, chosen: tuple[Mistake, ...]) -> list[Forward]:
    scaled = (fit.convention.scaled(p) for p in fit.batch)
    correction = fit.best[0].correction
    return [fit.convention.activated(reference.forward(p, correction, _faults(chosen))) for p in scaled]


def _explain(fit: Fit, runs: list[RunResult]) -> list[tuple[Mistake, ...]]:
    """The smallest sets of mistakes that explain y in evaluation."""
    observed = flat(run.outputs["y"] for run in runs)
    found: list[tuple[Mistake, ...]] = []
    for chosen in _candidates():
        if found and len(chosen) > len(found[0]):
            break
        predicted = flat(state.y for state in _states(fit, chosen))
        if np.abs(predicted - observed).max() <= fit.tolerance * np.abs(predicted).max():
            found.append(chosen)
    return found


def _add_rows(
    fit: Fit, runs: list[RunResult], found: list[tuple[Mistake, ...]], diagnosis: Diagnosis
) -> None:
    exact = _states(fit, ())
    errors = [np.abs(run.outputs["y"] - f.y).max() for run, f in zip(runs, exact, strict=True)]
    error = float(max(errors) / max(np.abs(f.y).max() for f in exact))
    names = list(dict.fromkeys(m.name for m in found[0])) if found else []
    if any(run.running for run in runs):
        diagnosis.mistakes.append(named(_UPDATED, *sorted({name for run in runs for name in run.running})))
    if not found:
        diagnosis.unnamed.append(
            "y (evaluation): can't name the mistake; it isn't gamma xhat + beta with the "
            "running statistics and the eps of training"
        )
    diagnosis.mistakes += [named(name, "y (evaluation)") for name in names]
    why = " and ".join(names) if found else "no known mistake explains it"
    diagnosis.rows.append(Row("y (evaluation)", bool(found) and not names, error, why))
    if found and fit.runner.backward is None:
        _judge_gradients(fit, runs, found[0], diagnosis)


def _judge_gradients(
    fit: Fit, runs: list[RunResult], chosen: tuple[Mistake, ...], diagnosis: Diagnosis
) -> None:
    """The gradients of automatic differentiation: running statistics are constants."""
    faults, correction = _faults(chosen), fit.best[0].correction
    backwards: list[Backward] = []
    for p, f in zip(fit.batch, _states(fit, chosen), strict=True):
        inner = fit.convention.inner(fit.convention.scaled(p), f, faults)
        b = reference.backward(inner, f, correction, EXACT, DERIVATIVE, faults)
        backwards.append(fit.convention.outer(p, b))
    for output in (o for o in BACKWARD if all(o in run.outputs for run in runs)):
        exact: Array = flat(getattr(b, output) for b in backwards)
        observed = flat(run.outputs[output] for run in runs)
        size = max(float(np.abs(exact).max()), 1e-300)
        error = float(np.abs(observed - exact).max()) / size
        right = error <= 100 * fit.tolerance
        why = "" if right else "not the derivative of y with constant statistics"
        diagnosis.rows.append(Row(f"{output} (evaluation)", right, error, why))
        if not right:
            diagnosis.unnamed.append(f"{output} (evaluation): it is {why}")
