"""Chooses how to call the code under test: the layout, kind, dtype and shapes with which its forward is right.

Nothing is diagnosed here. Of the plans that run, the first whose forward is exact is chosen, else the one that needs
the fewest mistakes; if none runs, the plan that got furthest has the reason.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from xhat.lens.checker.adapter import Unjudged
from xhat.lens.checker.conventions import OTHERS, PLAIN
from xhat.lens.checker.eps import CUSTOMARY
from xhat.lens.checker.fit import Fit, run_probes
from xhat.lens.checker.probes import LARGE
from xhat.lens.checker.runner import Runner
from xhat.lens.checker.runs import ArraySpec

__all__ = ["choose"]

_LOOSE = 0.02  # another layout is off by more, and float16 inside by less


@dataclass
class _Plan:
    runner: Runner
    fit: Fit
    complete: bool  # every output was computed


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
        if plan.complete and _mistakes(plan) == 0:
            return plan.runner
        plans.append(plan)
    if not plans:
        assert reason is not None
        raise reason
    return _best(plans).runner


def _plan(runner: Runner, eps: float | None) -> _Plan:
    """A spec that runs; statistics with the shape that the running ones need."""
    value, unit = CUSTOMARY if eps is None else eps, LARGE[runner.spec.dtype]
    fit = run_probes(runner, value, None, unit)
    if any(
        v.size != p.channels
        for p, run in zip(fit.batch, fit.runs[0], strict=True)
        for v in run.running.values()
    ):
        other = replace(runner, spec=replace(runner.spec, running="wide"))
        with suppress(Unjudged):
            runner, fit = other, run_probes(other, value, None, unit)
    fit.tolerance = max(fit.tolerance, _LOOSE)
    return _Plan(runner, fit, not any(run.unjudged for run in fit.runs[0]))


def _mistakes(plan: _Plan) -> int:
    """0 if y is exact; 1 if it is exact by another convention; 2 otherwise. Rows as channels need exact gradients."""
    outputs = plan.fit.outputs()
    judged = outputs if plan.runner.spec.layout == "CN" or "y" not in outputs else ["y"]
    for rank, conventions in enumerate(((PLAIN,), OTHERS)):
        for convention in conventions:
            fit = replace(plan.fit, convention=convention)
            if all(fit.is_exact(output) for output in judged):
                return rank
    return 2 if plan.runner.spec.layout != "CN" else 4


def _best(plans: list[_Plan]) -> _Plan:
    ranks = [_mistakes(plan) for plan in plans]
    least = min(ranks)
    left = [plan for plan, rank in zip(plans, ranks, strict=True) if rank == least]
    if least == 2 and len({plan.runner.spec.layout for plan in left}) > 1:
        named = [plan for plan in left if plan.fit.explains_y(1)]
        left = named or left
    return next((plan for plan in left if plan.complete), left[0])
