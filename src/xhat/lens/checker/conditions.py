"""The code under other conditions: equal calls, channels longer than a block, memory with strides, 16 bits.

Kernels are right on small contiguous batches first. Nothing is named here: code whose small batches are right is run on these.
"""

from collections.abc import Iterator
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

import numpy as np

from xhat.lens.checker.adapter import Unjudged
from xhat.lens.checker.arrays import holds
from xhat.lens.checker.bounds import bounds
from xhat.lens.checker.crossing import Crossing, crossing_probe
from xhat.lens.checker.diagnosis import Diagnosis
from xhat.lens.checker.fit import Fit
from xhat.lens.checker.probes import UNIT, Array, Probe
from xhat.lens.checker.runner import Runner
from xhat.lens.checker.search import Predictor

__all__ = ["judge_conditions"]

_EQUAL_CALLS = 4
# Right code differs from the exact results by a tenth of the bounds; whatever these conditions find is far larger.
_SLACK = 30.0
_SHORT = (Crossing("33 channels", 33, (3, 2, 5)), Crossing("4097 values a channel", 3, (17, 1, 241)))
_ALL = (
    *_SHORT,
    Crossing("1023 values a channel", 33, (3, 11, 31)),
    Crossing("1025 values a channel", 33, (5, 5, 41)),
    Crossing("4097 values a channel", 33, (17, 1, 241)),
)
_SECONDS = 0.5  # that a long probe may take, by the time of a short one


class Failure(NamedTuple):
    """The outputs that are wrong under a condition, and a sentence; no outputs: a note about what was not run."""

    outputs: tuple[str, ...]
    text: str
    decisive: bool = False  # no other reason matters


def judge_conditions(fit: Fit, diagnosis: Diagnosis) -> None:
    """Outputs that are right on small batches, and wrong under other conditions."""
    for failure in _failures(fit) if not diagnosis.mistakes else ():
        if not failure.outputs:
            diagnosis.notes.append(failure.text)
            continue
        if failure.decisive:
            diagnosis.unnamed = [t for t in diagnosis.unnamed if t.partition(":")[0] not in failure.outputs]
        diagnosis.unnamed.append(failure.text)
        for k, row in enumerate(diagnosis.rows):
            if row.output in failure.outputs and (row.right or failure.decisive):
                why = failure.text.partition(": ")[2]
                diagnosis.rows[k] = replace(row, right=False, error=None, why=why)


def _failures(fit: Fit, thorough: bool = False) -> Iterator[Failure]:
    """Everything that goes wrong under other conditions. thorough: in 16 bits too, and on more long channels.

    Of code that has a mistake anyway, only equal calls are compared.
    """
    runner = fit.runner
    found = list(_equal_calls(fit))
    yield from found
    if found or fit.cost != (0, 0):
        return
    yield from _strided(fit)
    yield from _long(runner, fit, _ALL if thorough else _SHORT, fit.dtype)
    if thorough:
        for dtype in ("float32", "float16", "bfloat16"):
            if UNIT[dtype] > UNIT[fit.dtype] and holds(runner.spec.kind, dtype):
                yield from _long(replace(runner, spec=replace(runner.spec, dtype=dtype)), fit, _ALL, dtype)


def _outputs(runner: Runner, p: Probe, fit: Fit) -> dict[str, Array]:
    """The outputs of a run, with dgamma and dbeta in the order that the fit has found."""
    result = runner.run(p, fit.best[0].correction)
    exchanged = result.swappable and not fit.runs[0][0].swappable
    return (result.swapped() if exchanged else result).outputs


def _equal_calls(fit: Fit) -> Iterator[Failure]:
    """Calls with equal inputs give equal bits."""
    try:
        first, *others = (_outputs(fit.runner, fit.batch[0], fit) for _ in range(_EQUAL_CALLS))
    except Unjudged as problem:
        yield Failure(("y",), f"y: a call with the same inputs as before fails: {problem}")
        return
    differing = [n for n in first if any(n not in o or first[n].tobytes() != o[n].tobytes() for o in others)]
    if differing:
        yield Failure(
            tuple(differing),
            f"{', '.join(differing)}: two calls with equal inputs differ: a race, or state that stays between calls",
            decisive=True,
        )


def _expected(
    p: Probe, fit: Fit, arithmetic: float, sums: float | None = None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The exact results of code that has no mistake, by its conventions, and the bounds on their errors."""
    e = fit.best[0]
    predictor = Predictor((p,), e.correction, fit.convention)
    (f,), (b,) = predictor.forwards(), predictor.backwards((), e.formulation)
    allowed = bounds(predictor.probes[0], f, b, e.correction, arithmetic=arithmetic, sums=sums, results={})
    return {"y": f.y, "dx": b.dx, "dgamma": b.dgamma, "dbeta": b.dbeta}, allowed


def _off(found: dict[str, Array], exact: dict[str, Array], allowed: dict[str, Array]) -> list[str]:
    """The outputs that are off."""
    off = []
    for name, values in found.items():
        if name in exact and values.size == exact[name].size:
            near = np.abs(values.reshape(exact[name].shape) - exact[name]) <= _SLACK * allowed[name]
            if not near.all():
                off.append(name)
    return off


def _strided(fit: Fit) -> Iterator[Failure]:
    """The same values in memory with strides give the same results, but for rounding."""
    runner, p = fit.runner, fit.batch[-1]
    if runner.spec.kind == "jax":  # its arrays have no strides
        return
    exact, allowed = _expected(p, fit, UNIT[fit.dtype])
    for memory, words in (
        ("reversed", "with axes in another order"),
        ("sliced", "that skip every second element"),
    ):
        try:
            found = _outputs(replace(runner, spec=replace(runner.spec, memory=memory)), p, fit)
        except Unjudged as problem:
            yield Failure((), f"On arrays {words} in memory it does not run: {problem}")
            continue
        off = _off(found, exact, allowed)
        if off:
            yield Failure(
                tuple(off), f"{', '.join(off)}: wrong on arrays {words} in memory: their strides are ignored"
            )
            return


def _long(runner: Runner, fit: Fit, crossings: tuple[Crossing, ...], dtype: str) -> Iterator[Failure]:
    """Batches that cross the block sizes of kernels."""
    layout = fit.batch[0].layout
    started = perf_counter()
    for crossing in crossings:
        p = crossing_probe(layout, crossing, eps=fit.eps, dtype=runner.spec.dtype)
        if not fit.affine:
            p = replace(p, gamma=np.ones_like(p.gamma), beta=np.zeros_like(p.beta))
        sums = UNIT["float32"] if UNIT[dtype] > UNIT["float32"] else None
        exact, allowed = _expected(p, fit, UNIT[dtype], sums)
        try:
            found = _outputs(runner, p, fit)
        except Unjudged as problem:
            yield Failure((), f"On {crossing.name} it does not run: {problem}")
            continue
        off = _off(found, exact, allowed)
        if off:
            inside = "" if dtype == fit.dtype else f" in {dtype}"
            yield Failure(
                tuple(off), f"{', '.join(off)}: wrong on {crossing.name}{inside}, right on short ones"
            )
            return
        if perf_counter() - started > _SECONDS:
            yield Failure((), f"Longer channels than those of {crossing.name} were not run, to save time.")
            return
