"""The judgement of one layout: conventions first, then mistakes, then what rounding shows, then what has no name.

The order matters: what a backward should give depends on the conventions and the mistakes of its own forward.
"""

from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np

from xhat.lens.checker import returned, rounding
from xhat.lens.checker import statistics as running
from xhat.lens.checker.adapter import Unjudged
from xhat.lens.checker.differences import own_gradients
from xhat.lens.checker.faults import TITLES, sets_of
from xhat.lens.checker.faults.mistakes import Mistake, turned
from xhat.lens.checker.fit import OWN_EPS, Case, with_eps
from xhat.lens.checker.probes import Array
from xhat.lens.checker.runner import Trial
from xhat.lens.checker.search import Explanation, Names, model
from xhat.lens.checker.statistics import Expected
from xhat.lens.checker.unexplained import describe
from xhat.lens.checker.verdict import Finding, Row

__all__ = ["Judgement", "judge"]


@dataclass
class Judgement:
    """Everything found on one layout."""

    trial: Trial
    eps: float
    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    conventions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tolerance: float = 0.0

    @property
    def right(self) -> bool:
        return not self.findings and not self.unnamed

    @property
    def forward_right(self) -> bool:
        return all(row.right for row in self.rows if row.output == "y")


def judge(trial: Trial, expected: Expected, eps: float | None) -> Judgement:
    """Judge the code under one plan. Raises Unjudged when a run fails."""
    case = with_eps(trial, eps, expected.correction)
    result = Judgement(trial, case.eps, tolerance=case.tolerance)
    _conventions(case, result, expected)
    result.findings += findings(case)
    _rows(case, result)
    _returned(case, result)
    _running(case, result, expected)
    _rounding(case, result)
    result.notes += list(dict.fromkeys(note for s in case.seen[0] for note in s.notes))
    return result


def _named(name: str, *outputs: str) -> Finding:
    line, remedy = TITLES[name]
    return Finding((name,), outputs, line, remedy)


def _conventions(case: Case, result: Judgement, expected: Expected) -> None:
    plan, told = case.trial.plan, result.conventions
    layout = case.batch[0].layout
    told["arrays"] = f"{plan.kind}, {plan.dtype}" + (
        f" ({case.dtype} inside)" if case.dtype != plan.dtype else ""
    )
    told["channel axis"] = f"{layout.axis} ({layout.name})"
    corrections = {e.correction for e in case.best}
    if len(corrections) == 1 and case.cost[0] == 0:
        (found,) = corrections
        told["variance"] = "N - 1" if found else "N"
        if expected.correction not in (None, found):
            result.findings.append(_named("variance with the other correction", case.outputs()[0]))
    if "y" in case.outputs() and case.cost[0] == 0:
        places = [m.name for m in case.best[0].forward if m.name.startswith("eps")]
        place = (
            places[0].removeprefix("eps ").removesuffix(" in the forward") if places else "inside the root"
        )
        given = case.trial.takes("eps", "options") and case.eps == OWN_EPS
        told["eps"] = place if given else f"{case.eps:g} in the code, {place}"


def findings(case: Case) -> list[Finding]:
    """The smallest set of mistakes as findings; where several sets explain the same, they are told together."""
    unions = list(dict.fromkeys(union for e in case.best for union in e.unions))
    groups = _factored(unions)
    found = []
    for names in groups:
        outputs = tuple(o for o in case.outputs() if any(_part_of(n, o, e) for n in names for e in case.best))
        first = names[0].split(" + ")[0]
        found.append(Finding(tuple(names), outputs, *TITLES[first]))
    return found


def _part_of(name: str, output: str, e: Explanation) -> bool:
    own = [frozenset(m.name for m in e.forward)] if output == "y" else e.outputs.get(output, ())
    return any(part in names for part in name.split(" + ") for names in own)


def _factored(unions: list[Names]) -> list[list[str]]:
    """Alternatives as a product of choices, [[a, b], [c]] for {a, c} and {b, c}; whole sets where they are none."""
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


def _rows(case: Case, result: Judgement) -> None:
    """Every output against the exact one, and what explains the difference."""
    e, plan = case.best[0], case.trial.plan
    here = model(plan.layout, plan.dtype, case.eps, case.affine, e.correction)
    left = e.forward if case.trial.uses_cache else ()
    paths = here.backwards(left, e.way)
    states = here.forwards()
    own = own_gradients(case.trial, case.batch[0], case.seen[0][0]) if "y" in e.outputs else set()
    for output in case.outputs():
        exact: list[Array] = [getattr(part, output) for part in (states if output == "y" else paths)]
        seen = [s.outputs[output] for s in case.seen[e.correction]]
        error = _error(seen, exact, here.scale(output))
        names = [" or ".join(f.names) for f in result.findings if _explains(f, output, e)]
        if output in own:
            result.rows.append(Row(output, True, None, "the derivative of this forward, by differences"))
        elif not e.outputs.get(output, ((),)):
            result.unnamed.append(describe(output, seen, exact, paths, here.probes))
            result.rows.append(Row(output, False, error, "no known mistake explains it"))
        else:
            result.rows.append(Row(output, not names, error, _why(output, names, e, left != ())))
    result.findings = [f for f in result.findings if not own or not set(f.outputs) <= own]
    if "y" in e.outputs and set(case.outputs()) - own != {"y"}:
        result.notes.append(
            "This forward has no name: other gradients were compared with an exact forward's."
        )
    if case.trial.plan.layout == "NC" and any(m.name.startswith("channel axis") for m in e.forward):
        result.notes.append("If the rows are meant to be the channels, say layout='CN'.")


def _explains(finding: Finding, output: str, e: Explanation) -> bool:
    return output in finding.outputs and any(_part_of(name, output, e) for name in finding.names)


def _why(output: str, names: list[str], e: Explanation, mistaken: bool) -> str:
    if names:
        return " and ".join(names)
    if output == "y" or not mistaken:
        return ""
    return (
        "the exact derivative of this forward"
        if e.way.style == "derivative"
        else "right once the forward is mended"
    )


def _error(seen: list[Array], exact: list[Array], scale: float) -> float | None:
    if any(s.size != e.size for s, e in zip(seen, exact, strict=True)):
        return None
    return max(float(np.abs(s.reshape(e.shape) - e).max()) for s, e in zip(seen, exact, strict=True)) / scale


def _running(case: Case, result: Judgement, expected: Expected) -> None:
    e, seen = case.best[0], case.seen[0]
    if not any(s.running for s in seen):
        return
    # The update is judged with the batch's statistics, even where the forward normalises with the running ones.
    knobs = replace(turned(e.forward), mean_from="batch", variance_from="batch")
    if any(v.size != case.batch[i].channels for i, s in enumerate(seen) for v in s.running.values()):
        result.unnamed.append("the running statistics have another shape than the channels")
        return
    plain = None
    if case.trial.takes("momentum", "options"):
        try:
            plain = case.trial.run(case.batch[0], e.correction, momentum=False)
        except Unjudged:
            plain = None  # momentum has no default
    found = running.judge(case.batch, seen, plain, e.correction, knobs, expected, case.tolerance)
    if found.unnamed:  # a mistake in statistics that y does not use
        for mistake in (one for (one,) in sets_of("y", 1, case.batch[0].places) if _of_statistics(one)):
            other = running.judge(
                case.batch, seen, plain, e.correction, turned((mistake,)), expected, case.tolerance
            )
            if not other.unnamed:
                found = other
                found.mistakes.append((mistake.name, "running_mean and running_var"))
                break
    result.conventions |= found.conventions
    result.unnamed += found.unnamed
    for name in dict.fromkeys(name for name, _ in found.mistakes):
        result.findings.append(_named(name, *(output for n, output in found.mistakes if n == name)))
    for output in sorted({name for s in seen for name in s.running}):
        names = [name for name, where in found.mistakes if output in where]
        lost = any(text.startswith(output) for text in found.unnamed)
        result.rows.append(Row(output, not names and not lost, None, ", ".join(names)))


def _returned(case: Case, result: Judgement) -> None:
    e = case.best[0]
    names = ", ".join(sorted({m.name for m in e.forward}))
    rows, unnamed = returned.judge(
        case.batch, case.seen[0], e.correction, turned(e.forward), names, case.tolerance
    )
    result.rows += rows
    result.unnamed += unnamed


def _of_statistics(mistake: Mistake) -> bool:
    return all(
        knob.startswith(("mean_", "variance_")) and not knob.endswith("_from") for knob, _ in mistake.turns
    )


def _rounding(case: Case, result: Judgement) -> None:
    """What only the growth of an error shows: cancellation and float16 sums."""
    e = case.best[0]
    if case.accumulates or (
        case.trial.plan.dtype == "float16" and rounding.overflows(case.trial, case.batch[0], e.correction)
    ):
        result.findings.append(_named("float16 accumulation", *case.outputs()))
    elif case.cost[0] == 0 and rounding.cancels(
        case.trial, case.batch[0], e.correction, e.forward, case.dtype
    ):
        result.findings.append(_named("one-pass variance cancelling", case.outputs()[0]))
    elif case.cost[0]:
        wider = replace(case)
        wider.explain(rounding.TOLERANCE["float16"])
        if wider.cost == (0, 0):
            result.notes.append(
                "All outputs are right to two digits: it may compute in 16 bits, or be off a little."
            )
