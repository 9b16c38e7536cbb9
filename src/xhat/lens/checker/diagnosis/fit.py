"""Runs the code on every probe of a layout, and finds the explanations that fit best.

Tolerances are chosen here: the tightest that the dtypes allow, and wider ones only if nothing else explains the runs.
Which eps a fit is made at is chosen in `eps`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.calling.runs import TRAINING, Mode, RunResult
from xhat.lens.checker.diagnosis.search import (
    BACKWARD,
    LIMIT,
    Explanation,
    Names,
    Predictor,
    flat,
    predictor_for,
)
from xhat.lens.checker.expected import rounding
from xhat.lens.checker.expected.conventions import OTHERS, PLAIN, Convention
from xhat.lens.checker.expected.probes import Array, Probe, probes
from xhat.lens.checker.expected.steps import CLOSED, FORMULATIONS
from xhat.lens.checker.faults import Mistake

__all__ = ["Fit", "fit_at", "forward_fits", "run_probes"]


@dataclass
class Fit:
    """The runs of one layout at one eps, and the explanations that fit them best."""

    runner: Runner
    batch: tuple[Probe, ...]
    # correction of the statistics passed to the backward -> a result per probe
    runs: dict[int, list[RunResult]]
    eps: float
    unit: float | None
    affine: bool | str
    correction: int | None = None  # required; the other is accepted only if this one explains nothing
    convention: Convention = PLAIN
    most: int = LIMIT  # mistakes that are searched for in one output
    tolerance: float = 0.0
    dtype: str = "float64"
    accumulates: bool = False  # sums in float16
    best: list[Explanation] = field(default_factory=list)
    own_eps: dict[str, float] = field(
        default_factory=dict
    )  # output -> the eps that it has instead of the fit's

    @property
    def cost(self) -> tuple[int, int]:
        return self.best[0].cost

    def flat(self, correction: int, output: str) -> Array:
        return flat(s.outputs[output] for s in self.runs[correction])

    def outputs(self) -> list[str]:
        """The outputs that every run returned, y first."""
        return [o for o in ("y", *BACKWARD) if all(o in s.outputs for s in self.runs[0])]

    def predictor(self, correction: int) -> Predictor:
        spec = self.runner.spec
        return predictor_for(
            spec.layout, spec.dtype, self.eps, self.affine, correction, self.unit, self.convention
        )

    def is_exact(self, output: str) -> bool:
        """Whether an output is exact, with either correction."""
        return any(
            self.predictor(c).explain(output, self.flat(c, output), self.tolerance, 0) for c in self.runs
        )

    def explains_y(self, limit: int) -> bool:
        """Whether y needs at most this many mistakes."""
        return "y" not in self.outputs() or any(
            self.predictor(c).explain("y", self.flat(c, "y"), self.tolerance, limit) for c in self.runs
        )

    def explain(self, tolerance: float) -> "Fit":
        """Find the cheapest explanations over both corrections, with as few mistakes per output as possible."""
        self.tolerance = tolerance
        every = (0, 1)
        for corrections in (every,) if self.correction is None else ((self.correction,), every):
            for limit in range(self.most + 1):
                found = [e for correction in corrections for e in self._explain(correction, limit)]
                cheapest = min((e.cost for e in found), default=(1, 0))
                self.best = [e for e in found if e.cost == cheapest]
                if cheapest[0] == 0:
                    return self
        return self

    def _explain(self, correction: int, limit: int) -> Iterator[Explanation]:
        """The explanations for one correction. At the last limit, an unexplained forward counts as exact."""
        outputs, predictor = self.outputs(), self.predictor(correction)
        observed = {o: self.flat(correction, o) for o in outputs if o != "y"}
        forwards: list[tuple[Mistake, ...]] = [()]
        unexplained: dict[str, tuple[Names, ...]] = {}
        if "y" in outputs:
            forwards = predictor.explain("y", self.flat(correction, "y"), self.tolerance, limit)
            if not forwards and limit == self.most:
                forwards, unexplained = [()], {"y": ()}
        for forward in forwards:
            inherited = forward if self.runner.uses_cache else ()
            for formulation in FORMULATIONS if inherited else (CLOSED,):
                backward = predictor.explain_backward(
                    observed, self.tolerance, min(limit, 1) if inherited else limit, inherited, formulation
                )
                yield Explanation(correction, forward, formulation, unexplained | backward)


def run_probes(
    runner: Runner, eps: float, correction: int | None, unit: float | None, mode: Mode = TRAINING
) -> Fit:
    """The runs of one layout, not explained yet. Raises Unjudged if the code can't run."""
    affine = _affine(runner)
    batch = probes(runner.spec.layout, runner.spec.dtype, eps, affine, unit)
    first = [runner.run(p, 0, mode=mode) for p in batch]
    uses_statistics = runner.backward is not None and runner.takes("mean", "var", "std", "rstd", "xhat")
    runs = {0: first, 1: [runner.run(p, 1, mode=mode) for p in batch] if uses_statistics else first}
    fit = Fit(runner, batch, runs, eps, unit, affine, correction)
    fit.dtype = rounding.coarse([runner.spec.dtype, *(d for s in first for d in s.dtypes)])
    fit.tolerance = rounding.TOLERANCE[fit.dtype]
    return fit


def _affine(runner: Runner) -> bool | str:
    """Whether the code has gamma and beta (True), one of them (its name), or none (False)."""
    if runner.forward is None:
        return True
    taken = [name for name in ("gamma", "beta") if runner.takes(name)]
    return len(taken) == 2 or (taken[0] if taken else False)


def fit_at(
    runner: Runner, eps: float, correction: int | None, unit: float | None = None, most: int = LIMIT
) -> Fit:
    """Runs and explanations at one eps, at the tightest tolerance with an explanation."""
    fit = _conventional(replace(run_probes(runner, eps, correction, unit), most=most))
    fit.explain(fit.tolerance)
    if fit.cost != (0, 0) and all(s.swappable for s in fit.runs[0]):
        swapped = replace(fit, runs={c: [s.swapped() for s in results] for c, results in fit.runs.items()})
        fit = min(fit, swapped.explain(fit.tolerance), key=lambda c: c.cost)
    if fit.cost[0] and fit.dtype == "float64" and rounding.is_noise(runner, fit.batch[0], fit.outputs()):
        wider = replace(fit, dtype="float32").explain(rounding.TOLERANCE["float32"])
        fit = wider if wider.cost[0] == 0 else fit
    if fit.cost[0] and fit.dtype in ("float64", "float32") and rounding.overflows(runner, fit.batch[0], 0):
        wider = replace(fit, dtype="float16", accumulates=True).explain(rounding.TOLERANCE["float16"])
        fit = wider if wider.cost[0] == 0 else fit
    return fit


def _conventional(fit: Fit) -> Fit:
    """The fit with the convention that explains y, if y is not that of a plain batch norm."""
    if fit.explains_y(0):
        return fit
    others = [replace(fit, convention=convention) for convention in OTHERS]
    tolerances = dict.fromkeys((fit.tolerance, rounding.TOLERANCE["float32"]))
    for tolerance in tolerances:
        for other in others:
            if replace(other, tolerance=tolerance).explains_y(0):
                return other
    if fit.explains_y(LIMIT):
        return fit
    return next((other for other in others if other.explains_y(1)), fit)


def forward_fits(runner: Runner, fit: Fit) -> bool:
    """Whether y is exact on another layout, as it is in this fit. Raises Unjudged if the code can't run."""
    mode = TRAINING if runner.forward is None else replace(TRAINING, gradients=False)
    other = replace(run_probes(runner, fit.eps, None, fit.unit, mode), convention=fit.convention)
    other.tolerance = max(other.tolerance, rounding.TOLERANCE["float32"])
    return other.explains_y(0)
