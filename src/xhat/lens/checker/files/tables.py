"""The verdicts of many files in the terminal: a row for each pair, then the mistakes of all.

Tables need rich (the extra `lens`); without it, they are plain text.
"""

from collections.abc import Iterator, Sequence

from xhat.lens.checker.files.grades import Graded, causes
from xhat.lens.checker.verdict import Verdict

__all__ = ["show_causes", "show_submissions"]

_COLOURS = {"right": "green", "wrong": "red", "not judged": "yellow"}
_ANSWERS = {True: "right", False: "wrong", None: "not judged"}
_NAMED = 8  # submissions that are listed for one mistake


def show_submissions(graded: Sequence[Graded]) -> None:
    """Print a row for each pair of each file, and for each submission without one."""
    rows = [row for one in graded for row in _rows(one)]
    _show(("submission", "functions", "", "what is wrong"), rows, answers=2)


def _rows(one: Graded) -> Iterator[tuple[str, ...]]:
    if not one.files:
        yield one.name, "", "not judged", one.problem or ""
    for file in one.files:
        name = one.name if len(one.files) == 1 else f"{one.name}: {file.path}"
        if file.problem:
            yield name, "", "not judged", file.problem
        for verdict in file:
            yield name, verdict.subject, _ANSWERS[verdict.right], _why(verdict)


def _why(verdict: Verdict) -> str:
    """What follows the answer in the headline; nothing if all is right."""
    if verdict.right:
        return ""
    rest = verdict.headline.removeprefix(f"{verdict.subject}: ")
    return rest.removeprefix("wrong: ").removeprefix("could not be judged: ")


def show_causes(graded: Sequence[Graded]) -> None:
    """Print each mistake with the number of submissions that have it, and their names."""
    rows = []
    for cause, names in causes(graded):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        rows.append((str(len(names)), cause, ", ".join(names[:_NAMED]) + more))
    if rows:
        print()
        _show(("how many", "mistake", "who"), rows)


def _show(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], answers: int | None = None) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        widths = [max(len(row[k]) for row in (titles, *rows)) for k in range(len(titles) - 1)]
        for row in (titles, *rows):
            print(
                "  ".join([*(f"{text:{width}}" for text, width in zip(row, widths, strict=False)), row[-1]])
            )
        return
    table = Table(*titles, pad_edge=False)
    for row in rows:
        colours = [_COLOURS[text] if k == answers else "" for k, text in enumerate(row)]
        table.add_row(*(Text(text, style=colour) for text, colour in zip(row, colours, strict=True)))
    Console().print(table)
