"""What the checker says about the corpus: right implementations, and programs with planted mistakes. No tables."""

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lens.checker.corpus.wrong.planting import Planted
from lens.checker.test_right import LAYOUT_IN_JAX, cases

from xhat.lens import check, check_file
from xhat.lens.checker.verdict import Verdict

__all__ = ["RightRow", "WrongRow", "agrees", "judge", "right", "wrong"]


class RightRow(NamedTuple):
    """The answer to one right implementation."""

    name: str
    passed: bool
    headline: str
    seconds: float


class WrongRow(NamedTuple):
    """The answer to one planted mistake: whether it is refused, and named, placed and read as expected."""

    planted: Planted
    refused: bool
    named: bool
    line: bool
    formula: bool | None  # None where no formula is expected
    said: Verdict
    seconds: float


def right(names: Iterable[tuple[str, str]]) -> Iterator[RightRow]:
    """Each right implementation, by its file and its name in it."""
    for file, name in names:
        start = time.perf_counter()
        verdict = check(
            *cases(file)[name], layout=LAYOUT_IN_JAX.get(name, "NC") if file == "in_jax" else None
        )
        yield RightRow(f"{file}: {name}", bool(verdict), verdict.headline, time.perf_counter() - start)


def wrong(planted: Iterable[Planted]) -> Iterator[WrongRow]:
    """Each planted mistake."""
    with tempfile.TemporaryDirectory() as folder:
        for mistake in planted:
            path = Path(folder) / f"{mistake.program}_{mistake.key}.py"
            path.write_text(mistake.source(), encoding="utf-8")
            yield judge(mistake, path)


def judge(mistake: Planted, path: Path) -> WrongRow:
    """The verdict on a planted mistake beside what was expected."""
    start = time.perf_counter()
    (verdict,) = check_file(path, layout=mistake.layout)
    seconds = time.perf_counter() - start
    wrong_rows = {row.output for row in verdict.rows if row.right is False}
    shown = [line.line for line in verdict.wrong_lines]
    places = mistake.lines()
    return WrongRow(
        planted=mistake,
        refused=verdict.status == 1 and set(mistake.outputs.split()) <= wrong_rows,
        named=bool(mistake.name) and set(mistake.name.split(" + ")) <= verdict.names,
        line=bool(shown) and shown[0] == places[0] and set(shown) <= set(places),
        formula=_formula(mistake, verdict),
        said=verdict,
        seconds=seconds,
    )


def _formula(mistake: Planted, verdict: Verdict) -> bool | None:
    """Whether the formula of every wrong output is as expected; brackets and spaces don't count."""
    if not mistake.formulas:
        return None
    read = {formula.output: formula.yours for formula in verdict.formulas}
    return all(output in read and agrees(read[output], text) for output, text in mistake.formulas.items())


def agrees(read: str, expected: str) -> bool:
    """Whether a formula is the expected one; after … a text that has to occur."""
    if expected.startswith("…"):
        return expected.removeprefix("…") in read
    return _plain(read.partition(" = ")[2]) == _plain(expected)


def _plain(formula: str) -> str:
    return "".join(c for c in formula if c not in "[]() ").lstrip("+")
