"""The runs of the code on every probe of a layout, and the explanations that fit them best.

Tolerances are chosen here: the tightest that the dtypes allow, wider only where that alone explains what was seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from xhat.lens.checker import rounding
from xhat.lens.checker.faults.mistakes import Mistake
from xhat.lens.checker.probes import Array, Probe, probes
from xhat.lens.checker.reference import CLOSED, WAYS
from xhat.lens.checker.runner import Seen, Trial
from xhat.lens.checker.search import BACKWARD, LIMIT, Explanation, Names, flat, model

__all__ = ["OWN_EPS", "Case", "explained", "forward_fits", "with_eps"]

# The eps that code has in it when it takes none; of the checker's own, it matters as much as the variance.
_CUSTOMARY = (1e-5, 1e-8, 1e-3, 1e-6, 1e-7, 1e-4, 1e-10, 1e-12, 1e-2)
OWN_EPS = 0.4


@dataclass
class Case:
    """The runs of one layout at one eps, and the explanations that fit them best."""

    trial: Trial
    batch: tuple[Probe, ...]
    seen: dict[int, list[Seen]]  # by the correction of the statistics that were handed over
    eps: float
    affine: bool
    correction: int | None = None  # asked for: another one is taken only where this explains nothing
    tolerance: float = 0.0
    dtype: str = "float64"
    accumulates: bool = False  # sums in float16
    best: list[Explanation] = field(default_factory=list)

    @property
    def cost(self) -> tuple[int, int]:
        return self.best[0].cost

    def flat(self, correction: int, output: str) -> Array:
        return flat(s.outputs[output] for s in self.seen[correction])

    def outputs(self) -> list[str]:
        """The outputs that every run gave, y first."""
        return [o for o in ("y", *BACKWARD) if all(o in s.outputs for s in self.seen[0])]

    def explain(self, tolerance: float) -> None:
        """The cheapest explanations over both corrections, looked for with as few mistakes an output as will do."""
        self.tolerance = tolerance
        every = tuple(self.seen)
        for corrections in (every,) if self.correction is None else ((self.correction,), every):
            for limit in range(LIMIT + 1):
                found = [e for correction in corrections for e in self._explain(correction, limit)]
                cheapest = min((e.cost for e in found), default=(1, 0))
                self.best = [e for e in found if e.cost == cheapest]
                if cheapest[0] == 0:
                    return

    def _explain(self, correction: int, limit: int) -> Iterator[Explanation]:
        """The explanations under one correction. A forward that none explains is taken as exact, in the last resort."""
        plan, outputs = self.trial.plan, self.outputs()
        here = model(plan.layout, plan.dtype, self.eps, self.affine, correction)
        seen = {o: self.flat(correction, o) for o in outputs if o != "y"}
        forwards: list[tuple[Mistake, ...]] = [()]
        lost: dict[str, tuple[Names, ...]] = {}
        if "y" in outputs:
            forwards = here.explain("y", self.flat(correction, "y"), self.tolerance, limit)
            if not forwards and limit == LIMIT:
                forwards, lost = [()], {"y": ()}
        for forward in forwards:
            left = forward if self.trial.uses_cache else ()
            for way in WAYS if left else (CLOSED,):
                backward = here.explain_backward(
                    seen, self.tolerance, min(limit, 1) if left else limit, left, way
                )
                yield Explanation(correction, forward, way, lost | backward)


def _runs(trial: Trial, eps: float, correction: int | None = None) -> Case:
    affine = trial.forward is None or trial.takes("gamma")
    batch = probes(trial.plan.layout, trial.plan.dtype, eps, affine)
    first = [trial.run(p, 0) for p in batch]
    handed = trial.backward is not None and trial.takes("mean", "var", "std", "rstd", "xhat")
    seen = {0: first, 1: [trial.run(p, 1) for p in batch] if handed else first}
    case = Case(trial, batch, seen, eps, affine, correction)
    case.dtype = rounding.coarse([trial.plan.dtype, *(d for s in first for d in s.dtypes)])
    return case


def explained(trial: Trial, eps: float, correction: int | None) -> Case:
    """Runs and explanations, at the tightest tolerance that the dtypes allow and anything explains."""
    case = _runs(trial, eps, correction)
    case.explain(rounding.TOLERANCE[case.dtype])
    if case.cost != (0, 0) and all(s.swappable for s in case.seen[0]):
        swapped = replace(case, seen={c: [s.swapped() for s in seen] for c, seen in case.seen.items()})
        swapped.explain(case.tolerance)
        case = min(case, swapped, key=lambda c: c.cost)
    if case.cost[0] and case.dtype == "float64":
        wider = replace(case, dtype="float32")
        wider.explain(rounding.TOLERANCE["float32"])
        case = wider if wider.cost[0] == 0 else case
    if case.cost[0] and case.dtype in ("float64", "float32") and rounding.overflows(trial, case.batch[0], 0):
        wider = replace(case, dtype="float16", accumulates=True)
        wider.explain(rounding.TOLERANCE["float16"])
        case = wider if wider.cost[0] == 0 else case
    return case


def forward_fits(trial: Trial, eps: float) -> bool:
    """Whether y is exact on a layout, for one of the corrections. Raises Unjudged where the code can't run."""
    case = _runs(trial, eps)
    tolerance = rounding.TOLERANCE[case.dtype if case.dtype != "float64" else "float32"]
    plan = trial.plan
    models = (model(plan.layout, plan.dtype, eps, case.affine, correction) for correction in case.seen)
    return any(here.explain("y", case.flat(0, "y"), tolerance, 0) for here in models)


def with_eps(trial: Trial, eps: float | None, correction: int | None) -> Case:
    """The runs at the eps given, at the checker's own where the code takes one, or at a customary one that fits."""
    if eps is not None or trial.takes("eps"):
        return explained(trial, OWN_EPS if eps is None else eps, correction)
    tried = (OWN_EPS, *_CUSTOMARY) if trial.takes("options") else _CUSTOMARY
    best: Case | None = None
    for value in tried:
        case = explained(trial, value, correction)
        best = case if best is None else min(best, case, key=lambda c: c.cost)
        if best.cost == (0, 0):
            break
    assert best is not None
    return best
