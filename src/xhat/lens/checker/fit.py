"""Runs the code on every probe of a layout, and finds the explanations that fit best.

Tolerances are chosen here: the tightest that the dtypes allow, and wider ones only if nothing else explains the runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from xhat.lens.checker import rounding
from xhat.lens.checker.faults import Mistake
from xhat.lens.checker.probes import Array, Probe, probes
from xhat.lens.checker.reference import CLOSED, FORMULATIONS
from xhat.lens.checker.runner import Runner, RunResult
from xhat.lens.checker.search import BACKWARD, LIMIT, Explanation, Names, flat, predictor_for

__all__ = ["PROBE_EPS", "Fit", "fit_at", "fit_with_eps", "forward_fits"]

# Usual values of a hard-coded eps; and the eps of the checker, which is as large as the variance.
_USUAL_EPS = (1e-5, 1e-8, 1e-3, 1e-6, 1e-7, 1e-4, 1e-10, 1e-12, 1e-2)
PROBE_EPS = 0.4


@dataclass
class Fit:
    """The runs of one layout at one eps, and the explanations that fit them best."""

    runner: Runner
    batch: tuple[Probe, ...]
    # correction of the statistics passed to the backward -> a result per probe
    runs: dict[int, list[RunResult]]
    eps: float
    affine: bool
    correction: int | None = None  # required; the other is accepted only if this one explains nothing
    tolerance: float = 0.0
    dtype: str = "float64"
    accumulates: bool = False  # sums in float16
    best: list[Explanation] = field(default_factory=list)

    @property
    def cost(self) -> tuple[int, int]:
        return self.best[0].cost

    def flat(self, correction: int, output: str) -> Array:
        return flat(s.outputs[output] for s in self.runs[correction])

    def outputs(self) -> list[str]:
        """The outputs that every run returned, y first."""
        return [o for o in ("y", *BACKWARD) if all(o in s.outputs for s in self.runs[0])]

    def explain(self, tolerance: float) -> None:
        """Find the cheapest explanations over both corrections, with as few mistakes per output as possible."""
        self.tolerance = tolerance
        every = tuple(self.runs)
        for corrections in (every,) if self.correction is None else ((self.correction,), every):
            for limit in range(LIMIT + 1):
                found = [e for correction in corrections for e in self._explain(correction, limit)]
                cheapest = min((e.cost for e in found), default=(1, 0))
                self.best = [e for e in found if e.cost == cheapest]
                if cheapest[0] == 0:
                    return

    def _explain(self, correction: int, limit: int) -> Iterator[Explanation]:
        """The explanations for one correction. At the last limit, an unexplained forward counts as exact."""
        spec, outputs = self.runner.spec, self.outputs()
        predictor = predictor_for(spec.layout, spec.dtype, self.eps, self.affine, correction)
        observed = {o: self.flat(correction, o) for o in outputs if o != "y"}
        forwards: list[tuple[Mistake, ...]] = [()]
        unexplained: dict[str, tuple[Names, ...]] = {}
        if "y" in outputs:
            forwards = predictor.explain("y", self.flat(correction, "y"), self.tolerance, limit)
            if not forwards and limit == LIMIT:
                forwards, unexplained = [()], {"y": ()}
        for forward in forwards:
            inherited = forward if self.runner.uses_cache else ()
            for formulation in FORMULATIONS if inherited else (CLOSED,):
                backward = predictor.explain_backward(
                    observed, self.tolerance, min(limit, 1) if inherited else limit, inherited, formulation
                )
                yield Explanation(correction, forward, formulation, unexplained | backward)


def _runs(runner: Runner, eps: float, correction: int | None = None) -> Fit:
    affine = runner.forward is None or runner.takes("gamma")
    batch = probes(runner.spec.layout, runner.spec.dtype, eps, affine)
    first = [runner.run(p, 0) for p in batch]
    uses_statistics = runner.backward is not None and runner.takes("mean", "var", "std", "rstd", "xhat")
    runs = {0: first, 1: [runner.run(p, 1) for p in batch] if uses_statistics else first}
    fit = Fit(runner, batch, runs, eps, affine, correction)
    fit.dtype = rounding.coarse([runner.spec.dtype, *(d for s in first for d in s.dtypes)])
    return fit


def fit_at(runner: Runner, eps: float, correction: int | None) -> Fit:
    """Runs and explanations at one eps, at the tightest tolerance with an explanation."""
    fit = _runs(runner, eps, correction)
    fit.explain(rounding.TOLERANCE[fit.dtype])
    if fit.cost != (0, 0) and all(s.swappable for s in fit.runs[0]):
        swapped = replace(fit, runs={c: [s.swapped() for s in results] for c, results in fit.runs.items()})
        swapped.explain(fit.tolerance)
        fit = min(fit, swapped, key=lambda c: c.cost)
    if fit.cost[0] and fit.dtype == "float64":
        wider = replace(fit, dtype="float32")
        wider.explain(rounding.TOLERANCE["float32"])
        fit = wider if wider.cost[0] == 0 else fit
    if fit.cost[0] and fit.dtype in ("float64", "float32") and rounding.overflows(runner, fit.batch[0], 0):
        wider = replace(fit, dtype="float16", accumulates=True)
        wider.explain(rounding.TOLERANCE["float16"])
        fit = wider if wider.cost[0] == 0 else fit
    return fit


def forward_fits(runner: Runner, eps: float) -> bool:
    """Whether y is exact on a layout, for one of the corrections. Raises Unjudged if the code can't run."""
    fit = _runs(runner, eps)
    tolerance = rounding.TOLERANCE[fit.dtype if fit.dtype != "float64" else "float32"]
    spec = runner.spec
    predictors = (
        predictor_for(spec.layout, spec.dtype, eps, fit.affine, correction) for correction in fit.runs
    )
    return any(predictor.explain("y", fit.flat(0, "y"), tolerance, 0) for predictor in predictors)


def fit_with_eps(runner: Runner, eps: float | None, correction: int | None) -> Fit:
    """The fit at the given eps; else at PROBE_EPS if eps is a parameter of the code; else at the best usual value."""
    if eps is not None or runner.takes("eps"):
        return fit_at(runner, PROBE_EPS if eps is None else eps, correction)
    tried = (PROBE_EPS, *_USUAL_EPS) if runner.takes("options") else _USUAL_EPS
    best: Fit | None = None
    for value in tried:
        fit = fit_at(runner, value, correction)
        best = fit if best is None else min(best, fit, key=lambda c: c.cost)
        if best.cost == (0, 0):
            break
    assert best is not None
    return best
