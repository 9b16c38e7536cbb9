"""Judges equations as they are printed: both meanings of a partial derivative, and the mistake in a wrong equation.

Verdicts are found in `prove`; nothing is printed here.
"""

from dataclasses import dataclass, replace

from xhat.lens.prover.expressions import Derivative, Node, Operation, Statement, Sum, spell, walk
from xhat.lens.prover.nearest import Nearest, nearest
from xhat.lens.prover.printed import parse_printed
from xhat.lens.prover.prove import Step, judge_statement

__all__ = ["Judged", "judge_printed"]

EDGE = "with mu and var held constant"
TOTAL = "with mu and var as functions of x"


@dataclass(frozen=True)
class Judged:
    """An equation as it was read, the verdict on each step, and the nearest true equation for each wrong step.

    reading   the meaning of the partial derivatives for which the verdict is, or None if they have only one
    notes     what was read as what, and what the other meaning gives
    """

    left: str
    steps: tuple[Step, ...]
    nearest: tuple[Nearest | None, ...]
    reading: str | None
    notes: tuple[str, ...]


def judge_printed(latex: str) -> tuple[Judged, ...]:
    """Every equation of a display. Raises ValueError for what can't be read, and Undecided."""
    return tuple(_judged(read.statement, read.notes) for read in parse_printed(latex))


def _judged(statement: Statement, notes: tuple[str, ...]) -> Judged:
    left = statement.left
    readings = _readings(statement)
    found = {reading: judge_statement(read) for reading, read in readings.items()}
    # The meaning for which more steps hold; mu and var are held constant if both are equal.
    reading = max(found, key=lambda name: sum(step.verdict != "wrong" for step in found[name]))
    steps = found[reading]
    if len(found) > 1:
        other = next(name for name in found if name != reading)
        if not any(step.verdict == "wrong" for step in steps):
            wrong = any(step.verdict == "wrong" for step in found[other])
            notes += (f"{reading}; {'wrong' if wrong else 'it also holds'} {other}",)
        else:
            notes += (f"wrong {EDGE}, and {TOTAL}",)
    mistakes = [
        nearest(readings[reading], k) if step.verdict == "wrong" else None for k, step in enumerate(steps)
    ]
    return Judged(spell(left), steps, tuple(mistakes), reading if len(found) > 1 else None, notes)


def _readings(statement: Statement) -> dict[str, Statement]:
    """The statement for each meaning of the derivatives of xhat and var by x.

    If the left side is such a derivative, its meaning is in question, and the right side expands it along the edges;
    else it is that of the derivatives on the right.
    """
    left = statement.left
    if isinstance(left, Derivative) and (left.top.symbol, left.bottom.symbol) == (
        "y",
        "x",
    ):  # only through xhat
        return {TOTAL: replace(statement, left=replace(left, total=True))}
    if _has_two_meanings(left):
        return {EDGE: statement, TOTAL: replace(statement, left=_made_total(left))}
    if any(_has_two_meanings(part) for step in statement.steps for part in walk(step)):
        return {EDGE: statement, TOTAL: replace(statement, steps=tuple(map(_made_total, statement.steps)))}
    return {"": statement}


def _has_two_meanings(node: Node) -> bool:
    return (
        isinstance(node, Derivative)
        and node.bottom.symbol == "x"
        and node.top.symbol in (r"\hat{x}", r"\sigma^2")
    )


def _made_total(node: Node) -> Node:
    if isinstance(node, Sum):
        return replace(node, body=_made_total(node.body))
    if isinstance(node, Operation):
        return replace(node, operands=tuple(map(_made_total, node.operands)))
    return replace(node, total=True) if isinstance(node, Derivative) and _has_two_meanings(node) else node
