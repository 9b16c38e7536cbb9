"""Tables of a run: on the terminal, in Markdown, and for the README. Nothing is measured here."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table

from benchmarks.cases import HEADLINES
from benchmarks.results import Index, Row, index
from benchmarks.targets import FLOORS, Verdict, floor_of, verdicts

__all__ = [
    "described_as",
    "document",
    "duration",
    "markdown",
    "print_race",
    "print_verdicts",
    "readme_table",
    "targets_table",
]

RIVALS = ("torch", "torch.compile", "jax", "numba")
Key = tuple[str, str, str, str, str]


def duration(microseconds: float) -> str:
    """Three digits, in the unit that fits."""
    return f"{microseconds / 1000:.3g} ms" if microseconds >= 100 else f"{microseconds:.3g} us"


def _moved(what: str) -> int:
    """How many arrays of x's size the pass has to move."""
    return {"forward": 2, "backward": 3, "both": 5}[what]


def print_race(console: Console, rows: Sequence[Row]) -> None:
    """One race: median, spread, bandwidth, multiple of the floor, time over ours, and error."""
    case, layout, dtype, variant, what, *_ = rows[0]
    entries = {row.contestant: row for row in rows}
    ours, floor = entries.get("xhat"), floor_of(entries, what)
    title = f"{case} {layout} {dtype}, {what}" + ("" if variant == "none" else f", {variant}")
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("", "median", "p20", "p80", "GB/s", "of floor", "over ours", "error"):
        table.add_column(name, justify="left" if not name else "right")
    for row in rows:
        fields = [row.contestant, *(duration(t) for t in (row.median, row.p20, row.p80))]
        fields.append(f"{row.nbytes * _moved(what) / row.median / 1e3:.1f}")
        fields.append(f"{row.median / floor.median:.2f}x" if floor else "")
        fields.append(f"{row.median / ours.median:.2f}x" if ours else "")
        fields.append("" if row.contestant in FLOORS.get(what, ()) else f"{row.error:.0e}")
        table.add_row(*fields, style="bold" if row.contestant.startswith("xhat") else "")
    console.print(table)


def print_verdicts(console: Console, found: Sequence[Verdict]) -> None:
    """Each target, case by case: reached or not, with the measured figure."""
    table = Table(title="Targets", title_justify="left", title_style="bold")
    for name in ("target", "case", "at most", "measured", ""):
        table.add_column(name, justify="right" if name in ("at most", "measured") else "left")
    for target, group in groupby(found, key=lambda verdict: verdict.target):
        for place, verdict in enumerate(group):
            mark = "[green]reached[/]" if verdict.reached else "[red]not reached[/]"
            shown = "" if place else target
            table.add_row(shown, verdict.case, f"{verdict.limit:.3g}", f"{verdict.measured:.3g}", mark)
        table.add_section()
    console.print(table)
    console.print(f"{sum(verdict.reached for verdict in found)} of {len(found)} reached")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    """A table whose first `left` columns are text."""
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def described_as(machine: dict[str, str]) -> str:
    """The machine, the versions and how the run was made, in a sentence."""
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("numpy", "torch", "jax", "numba") if name in machine
    )
    priority = "" if machine["priority"] == "normal" else f", priority {machine['priority']}"
    return (
        f"{machine['processor']}, {machine['cores']} cores, last-level cache {machine['last-level cache']}, "
        f"{machine['system']}; {machine['threads']} threads{priority}; xhat {machine['xhat']} at {machine['commit']}; "
        f"Python {machine['python']}, {versions}."
    )


def _times(found: Index, key: Key, rivals: Sequence[str]) -> list[str]:
    """Our time, and each rival's as a multiple of it."""
    entries = found.get(key, {})
    if "xhat" not in entries:
        return ["", *("" for _ in rivals)]
    ours = entries["xhat"].median
    others = [f"{entries[rival].median / ours:.1f}x" if rival in entries else "" for rival in rivals]
    return [duration(ours), *others]


def _of_floor(found: Index, key: Key) -> str:
    entries = found.get(key, {})
    floor = floor_of(entries, key[-1])
    return f"{entries['xhat'].median / floor.median:.2f}x" if floor and "xhat" in entries else ""


def _cases(found: Index) -> list[tuple[str, str, str]]:
    return list(dict.fromkeys(key[:3] for key in found if key[3] == "none"))


def readme_table(machine: dict[str, str], rows: Sequence[Row]) -> str:
    """The README's table: forward and backward of a few layers, and how near the floor each pass is."""
    found = index(rows)
    lines = [
        [
            f"({case.replace('x', ', ')}) {layout}",
            _of_floor(found, (case, layout, dtype, "none", "forward")),
            _of_floor(found, (case, layout, dtype, "none", "backward")),
            *_times(found, (case, layout, dtype, "none", "both"), RIVALS),
        ]
        for case, layout, dtype in _cases(found)
        if case in HEADLINES and dtype == "float32"
    ]
    head = ["float32", "forward / floor", "backward / floor", "xhat, both", *RIVALS]
    text = (
        "Forward and backward together, results preallocated; rivals' times as multiples of ours, their "
        "memory recycled. The floor is a streaming copy (forward) or triad (backward) of the same bytes, in "
        "the same run."
    )
    return f"{markdown(head, lines, 1)}\n\n{text} {described_as(machine)}\n"


def _passes(found: Index) -> list[str]:
    """A table per pass: every case, how near the floor, and every rival."""
    parts = []
    for what, name in (("forward", "Forward"), ("backward", "Backward"), ("both", "Forward and backward")):
        lines = []
        for case in _cases(found):
            key = (*case, "none", what)
            lines.append(
                [" ".join(case), _of_floor(found, key), *_times(found, key, ("torch aten", *RIVALS))]
            )
        head = ["case", "of floor", "xhat", "torch aten", *RIVALS]
        parts += [f"## {name}", markdown(head, lines, 1)]
    return parts


def _others(found: Index) -> str:
    """What is fused, threads, and the cost of a call: plain times."""
    lines = [
        [" ".join([*key[:3], key[4]]), name, *(duration(time) for time in (row.median, row.p20, row.p80))]
        for key, entries in found.items()
        if key[3] != "none"
        for name, row in entries.items()
    ]
    return markdown(["case", "", "median", "p20", "p80"], lines, 2)


def targets_table(judged: Sequence[Verdict]) -> str:
    """Each target on each case, reached or not."""
    marks = {True: "reached", False: "**not reached**"}
    lines = [[v.target, v.case, f"{v.limit:.3g}", f"{v.measured:.3g}", marks[v.reached]] for v in judged]
    return markdown(["target", "case", "at most", "measured", ""], lines, 2)


def document(machine: dict[str, str], rows: Sequence[Row]) -> str:
    """Every case and every target, in Markdown."""
    found = index(rows)
    judged = verdicts(found)
    parts = [
        "# Measured speed",
        described_as(machine),
        *_passes(found),
        "## Fused, threads, and the cost of a call",
        _others(found),
        f"## Targets: {sum(v.reached for v in judged)} of {len(judged)} reached",
        targets_table(judged),
    ]
    return "\n\n".join(parts) + "\n"
