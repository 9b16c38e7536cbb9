"""What xhat.torch is to reach, and whether a run reached it. The limits stand still: a miss is a miss.

Every limit is one of time over torch's, so that at most means the same everywhere; "3.5 x" is written 1 / 3.5.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.cases import TINY
from benchmarks.targets import Verdict
from benchmarks.torch_cases import TorchRow

__all__ = ["Race", "races", "verdicts"]

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


class Race(NamedTuple):
    """What was measured of everyone in one setting; the fields of TorchRow that tell settings apart."""

    memory: str
    case: str
    layout: str
    dtype: str
    variant: str
    what: str
    nbytes: int
    rows: dict[str, TorchRow]

    @property
    def over_torch(self) -> float:
        """Our figure over torch's."""
        return self.rows["xhat"].median / self.rows["torch"].median

    @property
    def label(self) -> str:
        """The case, and how memory was had."""
        return f"{self.case} {self.layout} {self.dtype}, {self.memory} memory"


def races(rows: Sequence[TorchRow]) -> list[Race]:
    """The rows, gathered by setting, in their order."""
    found: dict[tuple[object, ...], Race] = {}
    for row in rows:
        key = (row.memory, row.case, row.layout, row.dtype, row.variant, row.what)
        found.setdefault(key, Race(*key, row.nbytes, {})).rows[row.contestant] = row
    return list(found.values())


def verdicts(rows: Sequence[TorchRow]) -> list[Verdict]:
    """All targets on all that was measured, target by target."""
    found = [
        verdict for race in races(rows) if {"torch", "xhat"} <= race.rows.keys() for verdict in _of_race(race)
    ]
    order = list(dict.fromkeys(verdict.target for verdict in found))
    return sorted(found, key=lambda verdict: order.index(verdict.target))


def _of_race(race: Race) -> Iterator[Verdict]:
    if race.what == "both":
        yield from _of_layer(race)
    elif race.what == "step" and (race.variant, race.layout) in STEP:
        times = STEP[race.variant, race.layout]
        name = f"a training step of {race.variant}, {race.layout}: at least {times:g} x torch"
        yield Verdict(name, race.label, 1 / times, race.over_torch)
    elif race.what == "saved beyond x":
        yield from _saved(race)


def _of_layer(race: Race) -> Iterator[Verdict]:
    times = FASTER.get((race.layout, race.variant))
    if times and race.nbytes >= LARGE and race.dtype == "float32":
        name = f"{race.variant}, {race.layout}, 8 MB and more: at least {times:g} x torch"
        yield Verdict(name, race.label, 1 / times, race.over_torch)
    if race.nbytes >= SOME:
        name = f"{race.variant}, 64 KB and more: never slower than torch"
        yield Verdict(name, race.label, 1.0, race.over_torch)
    elif race.case in TINY_SHAPES:
        name = f"tiny, {race.variant}: at most {TINY_LIMIT} x torch's time"
        yield Verdict(name, race.label, TINY_LIMIT, race.over_torch)


def _saved(race: Race) -> Iterator[Verdict]:
    """In sizes of x: nothing but x, or y where a residual needs it; a few numbers a channel are allowed."""
    needed = 1 if "add" in race.variant else 0
    name = f"{race.variant}: kept beyond x{' and y' if needed else ''}, in sizes of x"
    yield Verdict(name, race.label, needed + 0.01, race.rows["xhat"].median * 1e6 / race.nbytes)
