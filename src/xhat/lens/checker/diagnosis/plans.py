"""Chooses how to call the code under test: the layout, kind, dtype and shapes with which its forward is right.

Nothing is diagnosed here. Of the plans that run, the first whose forward is exact is chosen, else the one that needs
the fewest mistakes; if none runs, the plan that got furthest has the reason.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.calling.runs import TRAINING, ArraySpec
from xhat.lens.checker.diagnosis.eps import CUSTOMARY
from xhat.lens.checker.diagnosis.fit import Fit, run_probes
from xhat.lens.checker.expected.conventions import OTHERS, PLAIN, Convention
from xhat.lens.checker.expected.probes import LARGE

__all__ = ["choose"]

_LOOSE = 0.02  # another layout is off by more, and float16 inside by less


@dataclass
class _Plan:
    """A spec that runs, and its forward on the probes, or the backward if there is no forward."""

    runner: Runner
    fit: Fit

    def is_exact(self, convention: Convention = PLAIN) -> bool:
        """Whether y is exact. Where the channels may be the rows, the gradients have to be exact too."""
        fit = self.fit
        if self.runner.spec.layout == "CN" and "y" in fit.outputs() and fit.is_exact("y"):
            fit = run_probes(self.runner, fit.eps, None, fit.unit)
            fit.tolerance = max(fit.tolerance, _LOOSE)
        judged = ["y"] if "y" in fit.outputs() and self.runner.spec.layout != "CN" else fit.outputs()
        fit = replace(fit, convention=convention)
        return all(fit.is_exact(output) for output in judged)

    @cached_property
    def is_complete(self) -> bool:
        """Whether every output was computed."""
        try:
            return not self.runner.run(self.fit.batch[0]).unjudged
        except Unjudged:
            return False


def choose(specs: Iterable[ArraySpec], runner: Runner, eps: float | None) -> Runner:
    """The runner with the best spec. Raises the Unjudged of the spec that got furthest if none runs."""
    plans: list[_Plan] = []
    reason: Unjudged | None = None
    for spec in specs:
        try:
            plan = _plan(replace(runner, spec=spec), eps)
        except Unjudged as problem:
            reason = problem if reason is None or problem.progress > reason.progress else reason
            continue
        except ModuleNotFoundError as missing:
            text = f"{spec.dtype} arrays of {spec.kind} need the package {missing.name}."
            reason = reason or Unjudged(text)
            continue
        if plan.is_exact() and plan.is_complete:
            return plan.runner
        plans.append(plan)
    if not plans:
        assert reason is not None
        raise reason
    return _best(plans).runner


def _plan(runner: Runner, eps: float | None) -> _Plan:
    """A spec that runs; the running statistics have the shape that the code keeps."""
    value, unit = CUSTOMARY if eps is None else eps, LARGE[runner.spec.dtype]
    mode = TRAINING if runner.forward is None else replace(TRAINING, gradients=False)
    fit = run_probes(runner, value, None, unit, mode)
    runs = zip(fit.batch, fit.runs[0], strict=True)
    if any(v.size != p.channels for p, run in runs for v in run.running.values()):
        other = replace(runner, spec=replace(runner.spec, running="wide"))
        with suppress(Unjudged):
            runner, fit = other, run_probes(other, value, None, unit, mode)
    fit.tolerance = max(fit.tolerance, _LOOSE)
    return _Plan(runner, fit)


def _best(plans: list[_Plan]) -> _Plan:
    """Exact plans that are not complete, else those with a convention, else those with one mistake, else the first."""
    named = [plan for plan in plans if plan.runner.spec.layout != "CN"] or plans
    for left in (
        [plan for plan in plans if plan.is_exact()],
        [plan for plan in named if any(plan.is_exact(convention) for convention in OTHERS)],
        [plan for plan in named if plan.fit.explains_y(1)],
        named,
    ):
        if left:
            return next((plan for plan in left if plan.is_complete), left[0])
    raise AssertionError
