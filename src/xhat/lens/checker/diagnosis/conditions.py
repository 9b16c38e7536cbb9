"""The code under other conditions: equal calls, channels longer than a block, memory with strides, 16 bits.

Kernels are right on small contiguous batches first. Code whose small batches are right is run on these;
nothing is named here.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.calling.arrays import holds
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.diagnosis.comparison import Comparison
from xhat.lens.checker.diagnosis.crossing import Crossing, crossing_probe
from xhat.lens.checker.diagnosis.fit import Fit
from xhat.lens.checker.diagnosis.record import Diagnosis
from xhat.lens.checker.diagnosis.search import Predictor
from xhat.lens.checker.expected.bounds import bounds
from xhat.lens.checker.expected.probes import UNIT, Array, Probe

__all__ = ["judge_conditions"]

_EQUAL_CALLS = 4
# Right code differs from the exact results by a tenth of the bounds; whatever these conditions find is far larger.
_SLACK = 30.0
_SLACK_16 = 1.0  # of 30 values that are added in 16 bits: more would hide a sum that is missing
_SHORT = (Crossing("4097 values a channel", 3, (17, 1, 241)), Crossing("33 channels", 33, (3, 2, 5)))
_CHANNELS = _SHORT[1:]  # in 16 bits, in which plain sums of more values lose their digits
_ONE = (Crossing("33 channels of 4097 values", 33, (17, 1, 241)),)  # in JAX, which compiles for every shape
_ALL = (
    *_SHORT,
    Crossing("1023 values a channel", 33, (3, 11, 31)),
    Crossing("1025 values a channel", 33, (5, 5, 41)),
    Crossing("4097 values a channel", 33, (17, 1, 241)),
)


class Failure(NamedTuple):
    """The outputs that are wrong under a condition, and a sentence; no outputs: a note about what was not run."""

    outputs: tuple[str, ...]
    text: str
    decisive: bool = False  # no other reason matters
    comparison: Comparison | None = None


def judge_conditions(fit: Fit, diagnosis: Diagnosis, thorough: bool = False) -> None:
    """Outputs that are right on small batches, and wrong under other conditions."""
    for failure in _failures(fit, thorough) if not diagnosis.mistakes else ():
        if not failure.outputs:
            diagnosis.notes.append(failure.text)
            continue
        if failure.comparison is not None:
            diagnosis.comparisons.append(failure.comparison)
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
    if thorough or UNIT[fit.dtype] <= UNIT["float32"]:
        short = _ONE if runner.spec.kind == "jax" else _SHORT
        yield from _long(runner, fit, _ALL if thorough else short, fit.dtype)
    else:
        yield from _long(runner, fit, _CHANNELS, fit.dtype, wide_sums=False)
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
    calls = 2 if fit.runner.spec.kind == "jax" else _EQUAL_CALLS
    try:
        first, *others = (_outputs(fit.runner, fit.batch[0], fit) for _ in range(calls))
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


def _beside(
    title: str,
    p: Probe,
    fit: Fit,
    found: dict[str, Array],
    arithmetic: float,
    sums: float | None = None,
    slack: float = _SLACK,
) -> Comparison:
    """Results beside the exact ones by the conventions of the code, with generous bounds."""
    e = fit.best[0]
    predictor = Predictor((p,), e.correction, fit.convention)
    (f,), (b,) = predictor.forwards(), predictor.backwards((), e.formulation)
    allowed = bounds(predictor.probes[0], f, b, e.correction, arithmetic=arithmetic, sums=sums, results={})
    exact = {"y": f.y, "dx": b.dx, "dgamma": b.dgamma, "dbeta": b.dbeta}
    yours = {
        o: v.reshape(exact[o].shape) if v.size == exact[o].size else v for o, v in found.items() if o in exact
    }
    return Comparison(title, p, yours, exact, {o: slack * allowed[o] for o in exact}, b)


def _off(c: Comparison) -> tuple[str, ...]:
    return tuple(output for output in c.yours if c.ratio(output) > 1)


def _strided(fit: Fit) -> Iterator[Failure]:
    """The same values in memory with strides give the same results, but for rounding."""
    runner, p = fit.runner, fit.batch[-1]
    if runner.spec.kind == "jax":  # its arrays have no strides
        return
    for memory, words in (
        ("reversed", "with axes in another order"),
        ("sliced", "that skip every second element"),
    ):
        try:
            found = _outputs(replace(runner, spec=replace(runner.spec, memory=memory)), p, fit)
        except Unjudged as problem:
            yield Failure((), f"On arrays {words} in memory it does not run: {problem}")
            continue
        c = _beside(f"arrays {words} in memory", p, fit, found, UNIT[fit.dtype])
        if off := _off(c):
            text = f"{', '.join(off)}: wrong on arrays {words} in memory: their strides are ignored"
            yield Failure(off, text, comparison=c)
            return


def _long(
    runner: Runner, fit: Fit, crossings: tuple[Crossing, ...], dtype: str, wide_sums: bool = True
) -> Iterator[Failure]:
    """Batches that cross the block sizes of kernels. wide_sums: those of 16 bits have to be in float32."""
    short = UNIT[dtype] > UNIT["float32"]
    layout = fit.batch[0].layout
    for crossing in crossings:
        p = crossing_probe(layout, crossing, eps=fit.eps, dtype=runner.spec.dtype).with_parameters(fit.affine)
        sums = UNIT["float32"] if short and wide_sums else None
        try:
            found = _outputs(runner, p, fit)
        except ModuleNotFoundError as missing:
            yield Failure((), f"{dtype} was not run, since it needs the package {missing.name}.")
            return
        except Unjudged as problem:
            yield Failure((), f"On {crossing.name} it does not run: {problem}")
            continue
        slack = _SLACK if wide_sums else _SLACK_16
        c = _beside(crossing.name, p, fit, found, UNIT[dtype], sums, slack)
        if off := _off(c):
            inside = "" if dtype == fit.dtype else f" in {dtype}"
            inside = f" in {dtype}, whose sums belong in float32" if sums else inside
            text = f"{', '.join(off)}: wrong on {crossing.name}{inside}, right on short ones"
            yield Failure(off, text, comparison=c)
            return
