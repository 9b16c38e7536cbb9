"""The table of docs/speed.md of the races on NumPy arrays. Nothing is measured here."""

from collections.abc import Mapping, Sequence

from benchmarks.harness.report import described_as, duration, markdown, shape
from benchmarks.harness.rows import Race, Row, find, races
from benchmarks.numpy.targets import FLOORS, floor_of

__all__ = ["HEADLINES", "details", "tables"]

# The rows of the table.
HEADLINES = {"32x64x112x112", "32x256x56x56", "32x512x14x14", "4096x256"}
RIVALS = ("torch", "torch.compile", "jax", "numba")
ABOUT = (
    "Time of forward plus backward, with preallocated outputs. The columns of other libraries are multiples of "
    "xhat's time; they reuse their memory, too. The floor is a streaming copy (forward) or triad (backward) of "
    "the same bytes, in the same run."
)
MOVED = {"forward": 2, "backward": 3, "both": 5}  # arrays of x's size that the pass has to read or write


def details(race: Race, row: Row) -> Mapping[str, str]:
    """Bandwidth, and the multiple of the floor."""
    found = {"GB/s": f"{row.nbytes * MOVED[race.what] / row.median / 1e3:.1f}"}
    if race.what in FLOORS:
        found["of floor"] = _of_floor(race, row.contestant)
    return found


def _of_floor(race: Race | None, name: str = "xhat") -> str:
    floor = floor_of(race) if race else None
    return f"{race.ratio(name, floor.contestant):.2f}x" if race and floor and name in race.rows else ""


def _times(race: Race | None, rivals: Sequence[str]) -> list[str]:
    """Our time, and each rival's as a multiple of it."""
    if race is None or "xhat" not in race.rows:
        return ["", *("" for _ in rivals)]
    others = [f"{race.ratio(rival, 'xhat'):.1f}x" if rival in race.rows else "" for rival in rivals]
    return [duration(race.rows["xhat"].median), *others]


def tables(machine: dict[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """The table of docs/speed.md: forward and backward of a few layers, and how near the floor each pass is."""
    lines: dict[str, list[str]] = {}
    found = [race for race in races(rows) if race.variant == "none" and race.dtype == "float32"]
    for race in found:
        if race.case in HEADLINES:
            passes = [find(found, case=race.case, layout=race.layout, what=w) for w in MOVED]
            forward, backward, both = passes
            lines[shape(race)] = [_of_floor(forward), _of_floor(backward), *_times(both, RIVALS)]
    head = ["float32", "forward / floor", "backward / floor", "xhat, both", *RIVALS]
    table = markdown(head, [[name, *cells] for name, cells in lines.items()], 1)
    return {"bench": f"{table}\n\n{ABOUT} {described_as(machine)}\n"}
