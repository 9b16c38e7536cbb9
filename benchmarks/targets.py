"""What is to be reached, and whether a run reached it. The limits stand still: a miss is a miss."""

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.cases import TINY
from benchmarks.results import Index, Row

__all__ = ["Verdict", "floor_of", "verdicts"]

LARGE, SMALL = 25e6, 13e6  # bytes of x: beyond the caches, and within them
FLOORS = {"forward": ("copy", "copy NT"), "backward": ("triad", "triad NT")}
# layout is NHWC -> pass -> multiple of the floor
MULTIPLES = {False: {"forward": 1.25, "backward": 1.4}, True: {"forward": 1.7, "backward": 2.0}}
EAGER = {False: 3.0, True: 1.3}
FUSED = 1.05
CALL = 6.0


class Verdict(NamedTuple):
    """A target, the case it was measured on, the limit, and the measured figure."""

    target: str
    case: str
    limit: float
    measured: float

    @property
    def reached(self) -> bool:
        """At most the limit."""
        return self.measured <= self.limit


def floor_of(entries: dict[str, Row], what: str) -> Row | None:
    """The faster of the plain and the non-temporal floor of the same race."""
    return min(
        (entries[name] for name in FLOORS.get(what, ()) if name in entries),
        key=lambda r: r.median,
        default=None,
    )


def verdicts(index: Index) -> list[Verdict]:
    """All targets on all cases that were measured, target by target."""
    found = [verdict for key, entries in index.items() for verdict in _of_race(key, entries)]
    found += [*_fused(index), *_threads(index), *_call(index)]
    order = list(dict.fromkeys(verdict.target for verdict in found))
    return sorted(found, key=lambda verdict: order.index(verdict.target))


def _of_race(key: tuple[str, str, str, str, str], entries: dict[str, Row]) -> Iterator[Verdict]:
    """Against the floor, against PyTorch and against Numba, in one race."""
    case, layout, dtype, variant, what = key
    if variant != "none" or "xhat" not in entries:
        return
    ours, label = entries["xhat"], f"{case} {layout} {dtype}"
    wide, last = ours.nbytes >= LARGE, layout == "NHWC"
    floor = floor_of(entries, what)
    if wide and floor:
        name = "NHWC" if last else "NCHW"
        limit = MULTIPLES[last][what]
        yield Verdict(f"{name}, 26 MB and more: {what} / floor", label, limit, ours.median / floor.median)
    if ours.nbytes < SMALL:
        for rival in ("numba", "torch"):
            if rival in entries:
                measured = ours.median / entries[rival].median
                yield Verdict(f"below 13 MB: {what} / {rival}", label, 1.0, measured)
    if what == "both" and "torch" in entries and layout in ("NCHW", "NHWC"):
        target = f"{layout}: forward + backward / torch, at most 1 / {EAGER[last]:g}"
        yield Verdict(target, label, 1 / EAGER[last], ours.median / entries["torch"].median)


def _fused(index: Index) -> Iterator[Verdict]:
    """What an activation costs over none, and a residual in units of its own read (half a copy)."""
    for (case, layout, dtype, variant, what), entries in index.items():
        if variant != "fused":
            continue
        label, plain = f"{case} {layout} {dtype}", entries["xhat"]
        for name in ("relu", "leaky_relu", "silu"):
            measured = entries[f"xhat {name}"].median / plain.median
            yield Verdict(f"fused {name}: {what} / none", label, FUSED, measured)
        floor = floor_of(entries, what)
        if what == "forward" and floor:
            added = entries["xhat residual + relu"].median - entries["xhat relu"].median
            yield Verdict("fused residual: time added / half a copy", label, 1.0, added / (floor.median / 2))


def _threads(index: Index) -> Iterator[Verdict]:
    """Two threads against one where there are three channels."""
    for (case, layout, dtype, variant, what), entries in index.items():
        if variant == "threads":
            measured = entries["xhat 2 threads"].median / entries["xhat 1 thread"].median
            yield Verdict(f"C = 3: {what}, 2 threads / 1", f"{case} {layout} {dtype}", 1.0, measured)


def _call(index: Index) -> Iterator[Verdict]:
    """The cost of one call on a tiny array."""
    entries = index.get((TINY.name, TINY.layout, TINY.dtype, "call", "forward"), {})
    if "kernel and binding" in entries:
        yield Verdict(
            "a call: us in kernel and binding", TINY.label, CALL, entries["kernel and binding"].median
        )
