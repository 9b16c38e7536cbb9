"""What xhat is to reach on NumPy arrays: multiples of the speed of memory, and of the rivals' times."""

from collections.abc import Iterator

from benchmarks.harness.cases import TINY
from benchmarks.harness.rows import Race, Row
from benchmarks.harness.targets import Verdict

__all__ = ["FLOORS", "floor_of", "targets"]

LARGE, SMALL = 25e6, 13e6  # bytes of x: beyond the caches, and within them
FLOORS = {"forward": ("copy", "copy NT"), "backward": ("triad", "triad NT")}
# layout is NHWC -> pass -> multiple of the floor
MULTIPLES = {False: {"forward": 1.25, "backward": 1.4}, True: {"forward": 1.7, "backward": 2.0}}
EAGER = {False: 3.0, True: 1.3}
FUSED = 1.05
CALL = 6.0


def floor_of(race: Race) -> Row | None:
    """The faster of the plain and the non-temporal floor of the same race."""
    floors = [race.rows[name] for name in FLOORS.get(race.what, ()) if name in race.rows]
    return min(floors, key=lambda row: row.median, default=None)


def targets(race: Race) -> Iterator[Verdict]:
    """The targets of a race, by what it compares."""
    found = {"none": _alone, "fused": _fused, "threads": _threads, "call": _call}[race.variant]
    yield from found(race)


def _alone(race: Race) -> Iterator[Verdict]:
    """Against the floor, against PyTorch and against Numba."""
    if "xhat" not in race.rows:
        return
    ours, last, what = race.rows["xhat"], race.layout == "NHWC", race.what
    floor = floor_of(race)
    if ours.nbytes >= LARGE and floor:
        name = f"{'NHWC' if last else 'NCHW'}, 26 MB and more: {what} / floor"
        yield Verdict(name, race.label, MULTIPLES[last][what], ours.median / floor.median)
    if ours.nbytes < SMALL:
        for rival in ("numba", "torch"):
            if rival in race.rows:
                yield Verdict(f"below 13 MB: {what} / {rival}", race.label, 1.0, race.ratio("xhat", rival))
    if what == "both" and "torch" in race.rows and race.layout in ("NCHW", "NHWC"):
        target = f"{race.layout}: forward + backward / torch, at most 1 / {EAGER[last]:g}"
        yield Verdict(target, race.label, 1 / EAGER[last], race.ratio("xhat", "torch"))


def _fused(race: Race) -> Iterator[Verdict]:
    """What an activation costs over none, and a residual in units of its own read (half a copy)."""
    for name in ("relu", "leaky_relu", "silu"):
        target = f"fused {name}: {race.what} / none"
        yield Verdict(target, race.label, FUSED, race.ratio(f"xhat {name}", "xhat"))
    floor = floor_of(race)
    if race.what == "forward" and floor:
        added = race.rows["xhat residual + relu"].median - race.rows["xhat relu"].median
        target = "fused residual: time added / half a copy"
        yield Verdict(target, race.label, 1.0, added / (floor.median / 2))


def _threads(race: Race) -> Iterator[Verdict]:
    """Two threads against one where there are three channels."""
    target = f"C = 3: {race.what}, 2 threads / 1"
    yield Verdict(target, race.label, 1.0, race.ratio("xhat 2 threads", "xhat 1 thread"))


def _call(race: Race) -> Iterator[Verdict]:
    """The cost of one call on a tiny array."""
    if "kernel and binding" in race.rows:
        median = race.rows["kernel and binding"].median
        yield Verdict("a call: us in kernel and binding", TINY.label, CALL, median)
