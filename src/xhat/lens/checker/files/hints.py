"""How much of a verdict a student is shown: that something is wrong, which output, which line, or which formula."""

from dataclasses import replace

from xhat.lens.checker.files.verdicts import Verdicts
from xhat.lens.checker.verdict import Row, Verdict

__all__ = ["LEVELS", "hinted"]

LEVELS = ("wrong", "output", "line", "formula", "all")


def hinted(verdicts: Verdicts, level: str) -> Verdicts:
    """The verdicts with what a level of LEVELS shows; each level shows what the one before it shows."""
    if level == "all":
        return verdicts
    return replace(verdicts, verdicts=tuple(_hinted(verdict, LEVELS.index(level)) for verdict in verdicts))


def _hinted(verdict: Verdict, level: int) -> Verdict:
    """Without the names of mistakes, which `all` shows; the reasons of what was not judged are always shown."""
    rows = tuple(replace(row, why=row.why if row.right is None else "", error=None) for row in verdict.rows)
    return replace(
        verdict,
        rows=rows if level >= LEVELS.index("output") else _whole(verdict),
        mistakes=(),
        unnamed=(),
        conventions={},
        notes=(),
        comparisons=(),
        wrong_lines=verdict.wrong_lines if level >= LEVELS.index("line") else (),
        formulas=verdict.formulas if level >= LEVELS.index("formula") else (),
    )


def _whole(verdict: Verdict) -> tuple[Row, ...]:
    """One row for each answer that a verdict has, with no output named."""
    answers = {row.right for row in verdict.rows} | ({False} if verdict.right is False else set())
    if answers == {True}:
        return (Row("all outputs", True, None, ""),)
    whys = "; ".join(dict.fromkeys(row.why for row in verdict.rows if row.right is None))
    wrong = (Row("some output", False, None, ""),) if False in answers else ()
    return wrong + ((Row("some output", None, None, whys),) if None in answers else ())
