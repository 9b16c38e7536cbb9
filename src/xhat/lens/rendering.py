"""`xhat derive`: the derivation as a table in the terminal, or as a text to read.

Verdicts are found by `proof`, words by `document`; this file prints.
"""

from pathlib import Path

from ..errors import ArgumentError
from . import writers
from .closed_forms import Theorem, theorems
from .document import TITLE, Block, Equation, Text, document, explain, tally
from .proof import derivation, judge, record
from .source import displays

__all__ = ["FORMATS", "derive", "render"]

FORMATS = ("table", *writers.WRITERS)

_COLOURS = {"holds": "green", "notation slip": "yellow", "wrong": "red"}  # anything else: one convention only


def render(style: str) -> str:
    """The whole corrected derivation as "md", "html" or "tex"."""
    if style not in writers.WRITERS:
        raise ArgumentError(f"render: style is {style!r}, expected one of {', '.join(writers.WRITERS)}.")
    return writers.WRITERS[style](TITLE, document(derivation(), theorems()))


def derive(
    style: str = "table",
    *,
    display: str | None = None,
    equation: str | None = None,
    output: Path | None = None,
) -> int:
    """Print the derivation, one display of it, or the verdict on an equation of your own; the exit status.

    0: printed (and the equation holds, for correction 0 at least or 1), 1: the equation is wrong. Raises
    ArgumentError for an unknown style or display, and for an equation that can't be read.
    """
    if equation is not None:
        return _own(equation)
    if display is not None:
        return _one(display)
    if style == "table":
        _table()
        return 0
    text = render(style)
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")
    return 0


def _own(equation: str) -> int:
    """An equation in the derivation's LaTeX, judged like those of the source."""
    try:
        steps = judge(equation)
    except ValueError as reason:
        raise ArgumentError(f"derive: the equation can't be read, {reason}.") from None
    if not steps:
        raise ArgumentError("derive: the equation has no equals sign, expected left = right.")
    for step in steps:
        print(f"{step.verdict}: ... = {step.claim}")
        for note in (*step.slips, step.method):
            print(f"    {note}")
        if step.witness:
            print("    " + ", ".join(f"{name} {_plain(value)}" for name, value in step.witness.items()))
    return int(any(step.verdict == "wrong" for step in steps))


def _plain(value: object) -> str:
    return f"({', '.join(value)})" if isinstance(value, list) else str(value)


def _one(name: str) -> int:
    """Everything about one display."""
    found = {display.id: (number, display) for number, display in enumerate(displays(), 1)}
    if name not in found:
        raise ArgumentError(f"derive: there is no display {name!r}, expected one of {', '.join(found)}.")
    number, display = found[name]
    judged = record(display)
    blocks: list[Block] = [Text(judged.words), Equation(judged.corrected or judged.source)]
    if judged.verdict != "holds":
        blocks += explain(judged)
    blocks.append(Text(f"How: {judged.method}."))
    print(writers.WRITERS["md"](f"{number}. {judged.title}", blocks), end="")
    return 0


def _table() -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    with console.status("proving the derivation ..."):
        records, proved = derivation(), theorems()
    table = Table(title="The derivation", title_justify="left")
    for name in ("", "display", "verdict", "why"):
        table.add_column(name, overflow="fold")
    for number, judged in enumerate(records, 1):
        table.add_row(str(number), judged.id, _coloured(judged.verdict), judged.short)
    console.print(table)
    console.print(tally(records))
    console.print(_theorem_table(proved, Table(title="What the code computes", title_justify="left")))
    console.print(
        "One display with its reason: xhat derive path-1. The whole text: xhat derive --format html."
    )


def _theorem_table(proved: tuple[Theorem, ...], table):  # type: ignore[no-untyped-def]
    for name in ("closed form", "code", "verdict"):
        table.add_column(name, overflow="fold")
    for theorem in proved:
        table.add_row(theorem.claim, theorem.code, _coloured(theorem.verdict))
    return table


def _coloured(verdict: str) -> str:
    return f"[{_COLOURS.get(verdict, 'magenta')}]{verdict}[/]"
