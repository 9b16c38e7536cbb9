"""`xhat derive`: the derivation as a table in the terminal or as Markdown, and the verdict on any equation.

Only printing lives here: verdicts come from `prove`, text from `document`.
"""

from pathlib import Path

from xhat.errors import ArgumentError
from xhat.lens.prover.document import document, explain, tally
from xhat.lens.prover.prove import Undecided
from xhat.lens.prover.reading import Judged, judge_printed
from xhat.lens.prover.records import derivation, record
from xhat.lens.prover.source import displays
from xhat.lens.prover.theorems import Theorem, theorems

__all__ = ["derive"]

_COLOURS = {
    "holds": "green",
    "notation slip": "yellow",
    "wrong": "red",
}  # else: holds for one convention only


def derive(
    style: str = "table",
    *,
    display: str | None = None,
    equation: str | None = None,
    output: Path | None = None,
) -> int:
    r"""Print the derivation, one display of it, or the verdict on an equation in LaTeX.

    Needs SymPy and mpmath (the extra ``lens``).

    Parameters
    ----------
    style : {"table", "md"}, default "table"
        A table for the terminal, or Markdown.
    display : str, optional
        The id of one display, such as "mean".
    equation : str, optional
        An equation in LaTeX, as papers print it.
    output : Path, optional
        A file that the Markdown is written to.

    Returns
    -------
    int
        The exit status: 1 if the equation is wrong, else 0 (it holds for correction 0 or 1, or both).

    Raises
    ------
    ArgumentError
        For an unknown style or display, for a table with a file, and for an equation that can't be parsed.

    Examples
    --------
    >>> import xhat.lens
    >>> status = xhat.lens.derive(equation=r"\mu = \frac{1}{N} \sum_{i=1}^N x_i")
    holds: mu = 1 / N * sum_i(x_i)
        proved for every n by normal form, for n = 2 ... 6 by expansion; 50 digits agree on random data
    >>> status
    0
    """
    if equation is not None:
        return _judge(equation)
    if display is not None:
        return _print_display(display)
    if style not in ("table", "md"):
        raise ArgumentError(f"derive: format is {style!r}, expected table or md.")
    if style == "table":
        if output is not None:
            raise ArgumentError("derive: a table has no file, add --format md.")
        _print_table()
        return 0
    text = document(derivation(), theorems())
    if output is None:
        print(text, end="")
    else:
        output.write_text(text, encoding="utf-8")
    return 0


def _judge(latex: str) -> int:
    """Judge the equations of a display in LaTeX, as they are printed."""
    try:
        found = judge_printed(latex)
    except Undecided as reason:
        raise Undecided(f"derive: {reason}.") from None
    except ValueError as reason:
        raise ArgumentError(f"derive: the equation can't be read: {reason}.") from None
    if not any(judged.steps for judged in found):
        raise ArgumentError("derive: the equation has no equals sign, expected left = right.")
    for note in dict.fromkeys(note for judged in found for note in judged.notes if " is read as " in note):
        print(note)
    for judged in found:
        _print_judged(judged)
    return int(any(step.verdict == "wrong" for judged in found for step in judged.steps))


def _print_judged(judged: Judged) -> None:
    left = judged.left
    for step, near in zip(judged.steps, judged.nearest, strict=True):
        print(f"{step.verdict}: {left} = {step.claim}")
        for note in (*step.slips, step.method):
            print(f"    {note}")
        if step.witness:
            print("    " + ", ".join(f"{name} {_listed(value)}" for name, value in step.witness.items()))
        if near:
            for change in near.changes:
                print(f"    {change}")
            print(f"    the nearest true equation: {near.claim}")
        left = "..."
    for note in judged.notes:
        if " is read as " not in note:
            print(f"    {note}")


def _listed(value: object) -> str:
    return f"({', '.join(value)})" if isinstance(value, list) else str(value)


def _print_display(name: str) -> int:
    found = {shown.id: (number, shown) for number, shown in enumerate(displays(), 1)}
    if name not in found:
        raise ArgumentError(f"derive: there is no display {name!r}, expected one of {', '.join(found)}.")
    number, shown = found[name]
    print(explain(number, record(shown)), end="")
    return 0


def _print_table() -> None:
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
    console.print("One display with its reason: xhat derive path-1. The whole text: xhat derive --format md.")


def _theorem_table(proved: tuple[Theorem, ...], table):  # type: ignore[no-untyped-def]
    for name in ("closed form", "code", "verdict"):
        table.add_column(name, overflow="fold")
    for theorem in proved:
        table.add_row(theorem.claim, theorem.code, _coloured(theorem.verdict))
    return table


def _coloured(verdict: str) -> str:
    return f"[{_COLOURS.get(verdict, 'magenta')}]{verdict}[/]"
