"""What xhat.torch is to reach.

Every limit is one of our time over torch's, so that "at most" means the same everywhere; 3.5 x as fast is 1 / 3.5.
"""

from collections.abc import Iterator

from benchmarks.harness.cases import TINY
from benchmarks.harness.rows import Race
from benchmarks.harness.targets import Verdict

__all__ = ["FASTER", "STEP", "TINY_LIMIT", "targets"]

LARGE, SOME = 8e6, 64 << 10  # bytes of x
FASTER = {  # (layout, variant) -> how many times as fast as eager torch, for large tensors
    ("NCHW", "bn"): 2.5,
    ("NCHW", "bn + relu"): 3.5,
    ("NHWC", "bn + relu"): 1.8,
    ("NCHW", "bn + add + relu"): 3.0,
    ("NHWC", "bn + add + relu"): 1.6,
}
TINY_SHAPES = (TINY.name, "8x16x4x4")
TINY_LIMIT = 1.15
STEP = {("ResNet-20", "NCHW"): 1.2, ("ResNet-20", "NHWC"): 1.1}


def targets(race: Race) -> Iterator[Verdict]:
    """The targets of a race, by what it compares."""
    if not {"torch", "xhat"} <= race.rows.keys():
        return
    if race.what == "both":
        yield from _of_layer(race)
    elif race.what == "step" and (race.variant, race.layout) in STEP:
        times = STEP[race.variant, race.layout]
        name = f"a training step of {race.variant}, {race.layout}: at least {times:g} x torch"
        yield Verdict(name, race.label, 1 / times, race.ratio("xhat", "torch"))
    elif race.what == "saved beyond x":
        yield from _saved(race)


def _of_layer(race: Race) -> Iterator[Verdict]:
    times = FASTER.get((race.layout, race.variant))
    if times and race.nbytes >= LARGE and race.dtype == "float32":
        name = f"{race.variant}, {race.layout}, 8 MB and more: at least {times:g} x torch"
        yield Verdict(name, race.label, 1 / times, race.ratio("xhat", "torch"))
    if race.nbytes >= SOME:
        name = f"{race.variant}, 64 KB and more: never slower than torch"
        yield Verdict(name, race.label, 1.0, race.ratio("xhat", "torch"))
    elif race.case in TINY_SHAPES:
        name = f"tiny, {race.variant}: at most {TINY_LIMIT} x torch's time"
        yield Verdict(name, race.label, TINY_LIMIT, race.ratio("xhat", "torch"))


def _saved(race: Race) -> Iterator[Verdict]:
    """In sizes of x: nothing but x, or y where a residual needs it; a few numbers a channel are allowed."""
    needed = 1 if "add" in race.variant else 0
    name = f"{race.variant}: kept beyond x{' and y' if needed else ''}, in sizes of x"
    yield Verdict(name, race.label, needed + 0.01, race.rows["xhat"].median * 1e6 / race.nbytes)
