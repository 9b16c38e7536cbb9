"""Diagnoses the code under test on one layout: conventions, mistakes, statistics, rounding, and errors without a name.

The order matters, since the correct backward depends on the conventions and on the mistakes of its forward.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.diagnosis.conditions import judge_conditions
from xhat.lens.checker.diagnosis.eps import IGNORED, OTHER, PROBE_EPS, fit_with_eps
from xhat.lens.checker.diagnosis.evaluation import judge_evaluation
from xhat.lens.checker.diagnosis.fit import Fit
from xhat.lens.checker.diagnosis.record import Diagnosis, named
from xhat.lens.checker.diagnosis.running import judge_running
from xhat.lens.checker.diagnosis.search import Explanation, Names
from xhat.lens.checker.diagnosis.statistics import Expected, check_returned
from xhat.lens.checker.diagnosis.unexplained import localize, own_gradients
from xhat.lens.checker.expected import rounding
from xhat.lens.checker.expected.probes import Array
from xhat.lens.checker.faults import TITLES, with_faults
from xhat.lens.checker.verdict import FoundMistake, Row

__all__ = ["diagnose"]


def diagnose(runner: Runner, expected: Expected, eps: float | None, thorough: bool = False) -> Diagnosis:
    """Diagnose the code with the arrays of one spec. Raises Unjudged if a run fails."""
    fit = fit_with_eps(runner, eps, expected.correction)
    diagnosis = Diagnosis(runner, fit, tolerance=fit.tolerance)
    _find_conventions(fit, diagnosis, expected)
    diagnosis.mistakes += found_mistakes(fit)
    _judge_outputs(fit, diagnosis)
    _judge_returned(fit, diagnosis)
    judge_running(fit, diagnosis, expected)
    judge_evaluation(fit, diagnosis)
    _find_rounding(fit, diagnosis)
    judge_conditions(fit, diagnosis, thorough)
    _note_unjudged(fit, diagnosis)
    diagnosis.notes += list(dict.fromkeys(note for s in fit.runs[0] for note in s.notes))
    return diagnosis


def _note_unjudged(fit: Fit, diagnosis: Diagnosis) -> None:
    """A row for every output that the code was to compute and did not."""
    reasons: dict[str, str] = {}
    for run in fit.runs[0]:
        missing = {output: why for output, why in run.unjudged.items() if output not in fit.outputs()}
        reasons = missing | reasons
    diagnosis.rows += [Row(output, None, None, why) for output, why in reasons.items()]


def _find_conventions(fit: Fit, diagnosis: Diagnosis, expected: Expected) -> None:
    spec, conventions = fit.runner.spec, diagnosis.conventions
    layout = fit.batch[0].layout
    conventions["arrays"] = f"{spec.kind}, {spec.dtype}" + (
        f" ({fit.dtype} inside)" if fit.dtype != spec.dtype else ""
    )
    conventions["channel axis"] = f"{layout.axis} ({layout.name})"
    corrections = {e.correction for e in fit.best}
    if len(corrections) == 1 and fit.cost[0] == 0:
        (found,) = corrections
        conventions["variance"] = "N - 1" if found else "N"
        if expected.correction not in (None, found):
            diagnosis.mistakes.append(named("variance with the other correction", fit.outputs()[0]))
    if "y" in fit.outputs() and fit.cost[0] == 0:
        places = [m.name for m in fit.best[0].forward if m.name.startswith("eps")]
        place = (
            places[0].removeprefix("eps ").removesuffix(" in the forward") if places else "inside the root"
        )
        conventions["eps"] = place if fit.eps == PROBE_EPS else f"{fit.eps:g} in the code, {place}"
    if isinstance(fit.affine, str):
        conventions["parameters"] = f"{fit.affine} alone"
    if fit.convention.words:
        conventions["convention"] = fit.convention.words
    if "y" in fit.own_eps:
        diagnosis.mistakes.append(named(IGNORED, "y"))


def found_mistakes(fit: Fit) -> list[FoundMistake]:
    """The smallest set of mistakes that explains all outputs; equivalent sets give one entry with several names."""
    unions = list(dict.fromkeys(union for e in fit.best for union in e.unions))
    groups = _factored(unions)
    found = []
    for names in groups:
        outputs = tuple(o for o in fit.outputs() if any(_part_of(n, o, e) for n in names for e in fit.best))
        first = names[0].split(" + ")[0]
        found.append(FoundMistake(tuple(names), outputs, *TITLES[first]))
    return found


def _part_of(name: str, output: str, e: Explanation) -> bool:
    own = [frozenset(m.name for m in e.forward)] if output == "y" else e.outputs.get(output, ())
    return any(part in names for part in name.split(" + ") for names in own)


def _factored(unions: list[Names]) -> list[list[str]]:
    """Alternative sets as a product of choices: [[a, b], [c]] for {a, c} and {b, c}; else whole sets."""
    first = sorted(unions[0])
    choices = [
        sorted({n for u in unions for n in u if unions[0] - {name} <= u and n not in unions[0] - {name}})
        for name in first
    ]
    made = {frozenset(choice) for choice in product(*choices)}
    if made == set(unions):
        return [choice for choice in choices if choice]
    common = frozenset.intersection(*unions)
    return [[name] for name in sorted(common)] + [sorted(" + ".join(sorted(u - common)) for u in unions)]


def _judge_outputs(fit: Fit, diagnosis: Diagnosis) -> None:
    """Compare every output with the exact one, and explain the difference."""
    e = fit.best[0]
    predictor = fit.predictor(e.correction)
    inherited = e.forward if fit.runner.uses_cache else ()
    paths = predictor.backwards(inherited, e.formulation)
    states = predictor.forwards()
    own = own_gradients(fit.runner, fit.batch[0], fit.runs[0][0]) if "y" in e.outputs else set()
    for output in fit.outputs():
        exact: list[Array] = [getattr(part, output) for part in (states if output == "y" else paths)]
        observed = [s.outputs[output] for s in fit.runs[e.correction]]
        error = _error(observed, exact, predictor.scale(output))
        names = [" or ".join(f.names) for f in diagnosis.mistakes if _explains(f, output, e)]
        names += [f"{IGNORED}: {fit.eps:g} is in the code"] if output == "y" and "y" in fit.own_eps else []
        names = [
            f"{n}: {fit.own_eps[output]:g}" if n == OTHER and output in fit.own_eps else n for n in names
        ]
        if output in own:
            diagnosis.rows.append(Row(output, True, None, "the derivative of this forward, by differences"))
        elif not e.outputs.get(output, ((),)):
            diagnosis.unnamed.append(localize(output, observed, exact, paths, predictor.probes))
            diagnosis.rows.append(Row(output, False, error, "no known mistake explains it"))
        else:
            diagnosis.rows.append(Row(output, not names, error, _why(output, names, e, inherited != ())))
    diagnosis.mistakes = [f for f in diagnosis.mistakes if not own or not set(f.outputs) <= own]
    if "y" in e.outputs and set(fit.outputs()) - own != {"y"}:
        diagnosis.notes.append(
            "This forward has no name: other gradients were compared with an exact forward's."
        )
    if fit.runner.spec.layout == "NC" and any(m.name.startswith("channel axis") for m in e.forward):
        diagnosis.notes.append("If the rows are meant to be the channels, say layout='CN'.")


def _explains(finding: FoundMistake, output: str, e: Explanation) -> bool:
    return output in finding.outputs and any(_part_of(name, output, e) for name in finding.names)


def _why(output: str, names: list[str], e: Explanation, mistaken: bool) -> str:
    if names:
        return " and ".join(names)
    if output == "y" or not mistaken:
        return ""
    return (
        "the exact derivative of this forward"
        if e.formulation.style == "derivative"
        else "right once the forward is mended"
    )


def _error(observed: list[Array], exact: list[Array], scale: float) -> float | None:
    if any(s.size != e.size for s, e in zip(observed, exact, strict=True)):
        return None
    return (
        max(float(np.abs(s.reshape(e.shape) - e).max()) for s, e in zip(observed, exact, strict=True)) / scale
    )


def _judge_returned(fit: Fit, diagnosis: Diagnosis) -> None:
    e = fit.best[0]
    names = ", ".join(sorted({m.name for m in e.forward}))
    rows, unnamed = check_returned(
        fit.batch, fit.runs[0], e.correction, with_faults(e.forward), names, fit.tolerance
    )
    diagnosis.rows += rows
    diagnosis.unnamed += unnamed


def _blame_rounding(name: str, outputs: Sequence[str], diagnosis: Diagnosis) -> None:
    """A mistake of outputs whose errors are small on the probes of the rows, and grow on others."""
    diagnosis.mistakes.append(named(name, *outputs))
    for k, row in enumerate(diagnosis.rows):
        if row.output in outputs and row.right:
            diagnosis.rows[k] = replace(
                row,
                right=False,
                error=None,
                why=f"{name}: right on small inputs, and wrong where errors grow",
            )


def _find_rounding(fit: Fit, diagnosis: Diagnosis) -> None:
    """Find mistakes that only the growth of an error shows: cancellation and float16 sums."""
    e = fit.best[0]
    if fit.accumulates or (
        fit.runner.spec.dtype == "float16" and rounding.overflows(fit.runner, fit.batch[0], e.correction)
    ):
        _blame_rounding("float16 accumulation", fit.outputs(), diagnosis)
    elif fit.cost[0] == 0 and rounding.cancels(
        fit.runner, fit.batch[0], e.correction, e.forward, fit.dtype, fit.convention
    ):
        _blame_rounding("one-pass variance cancelling", fit.outputs()[:1], diagnosis)
    elif fit.cost[0]:
        wider = replace(fit)
        wider.explain(rounding.TOLERANCE["float16"])
        if wider.cost == (0, 0):
            diagnosis.notes.append(
                "All outputs are right to two digits: it may compute in 16 bits, or be off a little."
            )
