"""Proves or refutes equations in the LaTeX of the derivation.

An equation is wrong if numbers refute it. Otherwise it must be proved twice, for every n by normal form and for
n = 2 ... 6 by expansion. If either proof fails, `Undecided` is raised instead of a verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mpmath

from xhat.errors import XhatError
from xhat.lens.prover import source
from xhat.lens.prover.domains import DIGITS, FixedSize, HighPrecision, SymbolicSize, random_data
from xhat.lens.prover.evaluate import Evaluator
from xhat.lens.prover.expressions import (
    Derivative,
    Name,
    Node,
    Statement,
    free_indices,
    spell,
    walk,
)
from xhat.lens.prover.parse import parse

__all__ = [
    "PROVED",
    "Outcome",
    "Side",
    "Step",
    "Undecided",
    "decide",
    "is_linked",
    "judge",
    "judge_statement",
    "left_side",
    "refuted",
    "side",
    "verdict_of",
    "worst",
]

Value = Any
Witness = Mapping[str, Any]
Side = Callable[[Evaluator, Mapping[str, Value]], Value]

SIZES = range(2, 7)
SEEDS = (1, 2, 3)
# Small data for readable witnesses: the mean is 3; with correction 1 and eps 2, rstd is 1/3.
READABLE = {"x": ["1", "2", "6"], "dy": ["1", "-1", "2"], "gamma": "1.5", "beta": "0.5", "eps": "2"}
READABLE_WEIGHTS = {"w": ["1", "0.5", "2"]}

PROVED = "proved for every n by normal form, for n = 2 ... 6 by expansion; 50 digits agree on random data"
REFUTED = "refuted by numbers in 50 digits"


class Undecided(XhatError):
    """The equation is neither refuted by numbers nor proved: the prover is too weak for it."""


@dataclass(frozen=True)
class Outcome:
    """Whether an equation holds; if not, numbers that refute it."""

    holds: bool
    witness: Witness | None = None


@dataclass(frozen=True)
class Step:
    """One equality of a display: its left side and this right side."""

    claim: str  # this right side in plain text, as parsed
    verdict: str
    slips: tuple[str, ...]
    follows: bool  # whether it equals the step before it (for the first step: the left side)
    method: str
    witness: Witness | None


def judge(latex: str, *, weighted: bool = False, corrections: Sequence[Value] = (0, 1)) -> tuple[Step, ...]:
    """The verdict on each step of a display, given in the LaTeX of the derivation.

    Raises ValueError for LaTeX outside of the dialect, and Undecided if neither a proof nor a refutation is found.
    """
    return judge_statement(parse(latex, source.declared_size()), weighted=weighted, corrections=corrections)


def judge_statement(
    statement: Statement, *, weighted: bool = False, corrections: Sequence[Value] = (0, 1)
) -> tuple[Step, ...]:
    """The verdict on each step of a statement. Raises Undecided like `judge`."""
    return tuple(_judge_step(statement, k, weighted, corrections) for k in range(len(statement.steps)))


def refuted(left: Side, right: Side, indices: Sequence[str], *, correction: Value, linked: bool) -> bool:
    """Whether numbers refute an equation. It is quick, and proves nothing."""
    with mpmath.workdps(DIGITS):
        return any(
            _refute(left, right, indices, evaluator) is not None
            for evaluator in _evaluators(correction, False, linked)[1]
        )


def decide(
    left: Side,
    right: Side,
    indices: Sequence[str] = (),
    *,
    correction: Value = 0,
    weighted: bool = False,
    linked: bool = True,
) -> Outcome:
    """Whether two sides are equal for every n, every x, dy (and w), and every value of the free indices."""
    symbolic, numeric = _evaluators(correction, weighted, linked)
    for evaluator in numeric:
        with mpmath.workdps(DIGITS):
            witness = _refute(left, right, indices, evaluator)
        if witness is not None:
            if _agree(left, right, indices, symbolic[0]):
                raise Undecided(f"proved for every n and refuted by {witness}: the prover is unsound")
            return Outcome(False, witness)
    for evaluator in symbolic:
        if not _agree(left, right, indices, evaluator):
            raise Undecided(
                f"no numbers refute the equation, but it isn't proved for {evaluator.domain.name}"
            )
    return Outcome(True)


def verdict_of(holds: Mapping[Value, bool], slips: Sequence[str]) -> str:
    """The verdict from whether the equation holds for each correction, and from its slips of notation."""
    if all(holds.values()):
        return "notation slip" if slips else "holds"
    right = [str(correction) for correction, held in holds.items() if held]
    return f"holds for correction={', '.join(right)}" if right else "wrong"


def method_of(holds: Mapping[Value, bool]) -> str:
    """How the equation was decided, for each correction separately if they differ."""
    if len(set(holds.values())) < 2:
        return PROVED if all(holds.values()) else REFUTED
    return "; ".join(f"correction {c}: {PROVED if held else REFUTED}" for c, held in holds.items())


def worst(verdicts: Sequence[str]) -> str:
    """The worst verdict. Steps that hold for different corrections only contradict each other: wrong."""
    conditional = {verdict for verdict in verdicts if verdict.startswith("holds for")}
    if "wrong" in verdicts or len(conditional) > 1:
        return "wrong"
    if conditional:
        return conditional.pop()
    return "notation slip" if "notation slip" in verdicts else "holds"


@cache
def _evaluators(correction: Value, weighted: bool, linked: bool) -> tuple[list[Evaluator], list[Evaluator]]:
    """Evaluators in the symbolic and in the numeric domains for one convention."""
    symbolic = [Evaluator(SymbolicSize(correction, weighted=weighted, linked=linked))]
    symbolic += [Evaluator(FixedSize(n, correction, weighted=weighted, linked=linked)) for n in SIZES]
    readable = READABLE | (READABLE_WEIGHTS if weighted else {})
    data = [readable, *(random_data(seed, weighted=weighted) for seed in SEEDS)]
    # A symbolic correction stands for every number, so any numbers can refute the equation.
    numbers = [correction] if isinstance(correction, int) else [0, 1, mpmath.mpf(1) / 3]
    with mpmath.workdps(DIGITS):
        numeric = [
            Evaluator(HighPrecision(values, number, linked=linked)) for values in data for number in numbers
        ]
    return symbolic, numeric


def _assignments(indices: Sequence[str], evaluator: Evaluator) -> Sequence[Mapping[str, Value]]:
    return [dict(zip(indices, choice, strict=True)) for choice in evaluator.domain.choices(indices)]


def _agree(left: Side, right: Side, indices: Sequence[str], evaluator: Evaluator) -> bool:
    domain = evaluator.domain
    return all(
        domain.equal(left(evaluator, at), right(evaluator, at)) for at in _assignments(indices, evaluator)
    )


def _refute(left: Side, right: Side, indices: Sequence[str], evaluator: Evaluator) -> Witness | None:
    """Numbers for which the sides differ, or None."""
    domain = evaluator.domain
    assert isinstance(domain, HighPrecision)
    for at in _assignments(indices, evaluator):
        found = left(evaluator, at)
        try:
            claimed = right(evaluator, at)
        except ZeroDivisionError:
            claimed = mpmath.nan
        if domain.equal(found, claimed):
            continue
        nodes = {"correction": domain.correction, "mu": domain.mu, "var": domain.var}
        sides = {"left": found, "right": claimed}
        numbers = {name: _digits(value) for name, value in (domain.data | nodes | sides).items()}
        positions = {name: position + 1 for name, position in at.items()}
        return numbers | positions | {"statistics": "of x" if domain.linked else "free"}
    return None


def _digits(value: Value) -> Any:
    """A number, or a list of numbers, as text with 12 digits."""
    if isinstance(value, list):
        return [_digits(entry) for entry in value]
    return mpmath.nstr(mpmath.mpmathify(value), 12, strip_zeros=True).removesuffix(".0")


def side(node: Node) -> Side:
    """The value of an expression."""
    return lambda evaluator, at: evaluator.value(node, at)


def left_side(node: Node) -> Side:
    """The left side of an equation. For a definition, it is the value that the code computes for the node."""
    if isinstance(node, Name):
        return lambda evaluator, at: evaluator.definition(node, at)
    return side(node)


def is_linked(left: Node, right: Node) -> bool:
    """Whether the sides are compared where mu and var are the moments of x.

    Not for the derivative of one edge that mentions mu or var: it is a function of them, and has to be right for
    all their values. -2 sum(x - mu) and 2 sum(x - mu) are different derivatives, although both vanish at the mean.
    """
    edge = isinstance(left, Derivative) and left.top.symbol != "L" and not left.total
    names = {part.symbol for part in walk(right) if isinstance(part, Name)}
    return not (edge and names & {r"\mu", r"\sigma^2", r"\hat{x}"})


def _judge_step(statement: Statement, k: int, weighted: bool, corrections: Sequence[Value]) -> Step:
    left, right = statement.left, statement.steps[k]
    linked = is_linked(left, right)

    def outcomes(first: Side, node: Node) -> dict[Value, Outcome]:
        indices = free_indices(node, right)
        return {
            c: decide(first, side(right), indices, correction=c, weighted=weighted, linked=linked)
            for c in corrections
        }

    found = outcomes(left_side(left), left)
    holds = {c: outcome.holds for c, outcome in found.items()}
    follows = all(holds.values())
    if k and not follows:
        before = statement.steps[k - 1]
        follows = all(outcome.holds for outcome in outcomes(side(before), before).values())
    witness = next((outcome.witness for outcome in found.values() if not outcome.holds), None)
    slips = statement.slips[k]
    return Step(spell(right), verdict_of(holds, slips), slips, follows, method_of(holds), witness)
