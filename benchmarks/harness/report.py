"""Tables of a run: on the terminal, and in Markdown for the pages that show them. Nothing is measured here."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.harness.rows import Race, Row
from benchmarks.harness.targets import Verdict

__all__ = [
    "Details",
    "described_as",
    "duration",
    "figure",
    "fill",
    "markdown",
    "print_machine",
    "print_race",
    "print_verdicts",
    "shape",
]

Details = Callable[[Race, Row], Mapping[str, str]]
MEGABYTES = ("peak", "saved beyond x")  # what is measured in MB; everything else is a time


def duration(microseconds: float) -> str:
    """Three digits, in the unit that fits."""
    return f"{microseconds / 1000:.3g} ms" if microseconds >= 100 else f"{microseconds:.3g} us"


def figure(race: Race, value: float) -> str:
    """A time or megabytes, as the race has it."""
    return f"{value:.4g} MB" if race.what in MEGABYTES else duration(value)


def shape(race: Race) -> str:
    """The case as a tuple, with its layout."""
    return f"({race.case.replace('x', ', ')}) {race.layout}"


def print_machine(console: Console, machine: Mapping[str, str]) -> None:
    """The machine, the versions and how the run is made, line by line."""
    console.print("\n".join(f"{key:>16}  {value}" for key, value in machine.items()), highlight=False)


def print_race(console: Console, race: Race, details: Details) -> None:
    """One race: median, spread, what the benchmark adds, the multiple of our figure, and the error."""
    ours = race.rows.get("xhat")
    columns = dict.fromkeys(name for row in race.rows.values() for name in details(race, row))
    variant = "" if race.variant == "none" else race.variant
    title = ", ".join(filter(None, (race.label, variant, race.what)))
    table = Table(title=title, title_justify="left")
    for name in ("", "median", "p20", "p80", *columns, "over ours", "error"):
        table.add_column(name, justify="left" if not name else "right")
    for name, row in race.rows.items():
        added = details(race, row)
        cells = [
            *(figure(race, v) for v in (row.median, row.p20, row.p80)),
            *(added.get(c, "") for c in columns),
        ]
        cells.append(f"{row.median / ours.median:.2f}x" if ours and ours.median else "")
        cells.append(f"{row.error:.0e}" if row.error else "")
        table.add_row(name, *cells, style="bold" if name.startswith("xhat") else "")
    console.print(table)


def print_verdicts(console: Console, found: Sequence[Verdict]) -> None:
    """Each target, case by case: reached or not, with the measured figure."""
    if not found:
        return
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


def fill(path: Path, marker: str, text: str) -> bool:
    """Puts text between `<!-- marker:start -->` and `<!-- marker:end -->`; False without such a place."""
    if not path.exists():
        return False
    pattern = re.compile(rf"(<!-- {marker}:start -->\n).*?(<!-- {marker}:end -->)", re.DOTALL)
    filled, count = pattern.subn(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", path.read_text())
    if count:
        path.write_text(filled)
    return bool(count)
