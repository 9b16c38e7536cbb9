"""Proves or refutes equations: `derivation()` judges every display of the source, `judge` any equation in LaTeX.

An equation that numbers refute is wrong. One that no numbers refute must be proved twice, for every n by normal
form and for n = 2 ... 6 by expansion; if either fails, `Undecided` is raised rather than a verdict given.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mpmath

from xhat.errors import XhatError
from xhat.lens.prover import source
from xhat.lens.prover.corrections import CLAIMS
from xhat.lens.prover.domains import DIGITS, Concrete, General, Numbers, random_numbers
from xhat.lens.prover.evaluate import Meaning
from xhat.lens.prover.expressions import (
    Derivative,
    Name,
    Node,
    Statement,
    free_indices,
    spell,
    spell_statement,
    walk,
)
from xhat.lens.prover.parse import read

__all__ = [
    "PROVED",
    "Outcome",
    "Record",
    "Side",
    "Step",
    "Undecided",
    "decide",
    "derivation",
    "judge",
    "left_side",
    "record",
]

Value = Any
Witness = Mapping[str, Any]
Side = Callable[[Meaning, Mapping[str, Value]], Value]

SIZES = range(2, 7)
SEEDS = (1, 2, 3)
# Small data for witnesses: mean 3, and with correction 1 and eps 2 rstd is 1/3.
READABLE = {"x": ["1", "2", "6"], "dy": ["1", "-1", "2"], "gamma": "1.5", "beta": "0.5", "eps": "2"}
READABLE_WEIGHTS = {"w": ["1", "0.5", "2"]}

PROVED = "proved for every n by normal form, for n = 2 ... 6 by expansion; 50 digits agree on random data"
REFUTED = "refuted by numbers in 50 digits"
GIVEN = "a name: nothing is claimed"


class Undecided(XhatError):
    """No numbers refute the equation, and yet it isn't proved: the prover is too weak for it."""


@dataclass(frozen=True)
class Outcome:
    """Whether an equation holds, and numbers that refute it where it doesn't."""

    holds: bool
    witness: Witness | None = None


@dataclass(frozen=True)
class Step:
    """One equality of a display: its left side and this right side."""

    claim: str  # this right side as it was read, in plain text
    verdict: str
    slips: tuple[str, ...]
    follows: bool  # whether it equals the step before it (the first: the left side)
    method: str
    witness: Witness | None


@dataclass(frozen=True)
class Record:
    """A display of the source and what became of it; the verdict is the worst of its steps'."""

    id: str
    title: str
    source: str
    claim: str  # the display as it was read, in plain text
    verdict: str
    corrected: str | None
    words: str  # what the corrected display says and where it comes from
    short: str  # the slips in a few words
    reason: str
    method: str
    witness: Witness | None
    slips: tuple[str, ...]
    steps: tuple[Step, ...]


@cache
def derivation() -> tuple[Record, ...]:
    """Every displayed equation of the source, in its order, proved or refuted."""
    return tuple(map(record, source.displays()))


def judge(latex: str, *, weighted: bool = False, corrections: Sequence[Value] = (0, 1)) -> tuple[Step, ...]:
    """A verdict for each step of a display in the derivation's LaTeX.

    Raises ValueError for LaTeX outside of the dialect, Undecided where neither proof nor refutation is found.
    """
    statement = read(latex, source.declared_size())
    return tuple(_judge_step(statement, k, weighted, corrections) for k in range(len(statement.steps)))


def decide(
    left: Side,
    right: Side,
    indices: Sequence[str] = (),
    *,
    correction: Value = 0,
    weighted: bool = False,
    linked: bool = True,
) -> Outcome:
    """Whether two sides agree for every n, every x, dy (and w), and every value of the free indices."""
    symbolic, numeric = _meanings(correction, weighted, linked)
    for meaning in numeric:
        with mpmath.workdps(DIGITS):
            witness = _refute(left, right, indices, meaning)
        if witness is not None:
            if _agree(left, right, indices, symbolic[0]):
                raise Undecided(f"proved for every n and refuted by {witness}: the prover is unsound")
            return Outcome(False, witness)
    for meaning in symbolic:
        if not _agree(left, right, indices, meaning):
            raise Undecided(f"no numbers refute the equation, but it isn't proved for {meaning.world.name}")
    return Outcome(True)


def verdict_of(holds: Mapping[Value, bool], slips: Sequence[str]) -> str:
    """The verdict from whether an equation holds for each correction, and its slips of notation."""
    if all(holds.values()):
        return "notation slip" if slips else "holds"
    right = [str(correction) for correction, held in holds.items() if held]
    return f"holds for correction={', '.join(right)}" if right else "wrong"


def method_of(holds: Mapping[Value, bool]) -> str:
    """How it was decided, for each correction where they differ."""
    if len(set(holds.values())) < 2:
        return PROVED if all(holds.values()) else REFUTED
    return "; ".join(f"correction {c}: {PROVED if held else REFUTED}" for c, held in holds.items())


def worst(verdicts: Sequence[str]) -> str:
    """The worst verdict; two steps that hold for different corrections only can't both hold: wrong."""
    conditional = {verdict for verdict in verdicts if verdict.startswith("holds for")}
    if "wrong" in verdicts or len(conditional) > 1:
        return "wrong"
    if conditional:
        return conditional.pop()
    return "notation slip" if "notation slip" in verdicts else "holds"


@cache
def _meanings(correction: Value, weighted: bool, linked: bool) -> tuple[list[Meaning], list[Meaning]]:
    """The symbolic and the numeric worlds for one convention."""
    symbolic = [Meaning(General(correction, weighted=weighted, linked=linked))]
    symbolic += [Meaning(Concrete(n, correction, weighted=weighted, linked=linked)) for n in SIZES]
    readable = READABLE | (READABLE_WEIGHTS if weighted else {})
    data = [readable, *(random_numbers(seed, weighted=weighted) for seed in SEEDS)]
    # A symbol stands for every correction: any numbers will do to refute it.
    numbers = [correction] if isinstance(correction, int) else [0, 1, mpmath.mpf(1) / 3]
    with mpmath.workdps(DIGITS):
        numeric = [Meaning(Numbers(values, number, linked=linked)) for values in data for number in numbers]
    return symbolic, numeric


def _places(indices: Sequence[str], meaning: Meaning) -> Sequence[Mapping[str, Value]]:
    return [dict(zip(indices, choice, strict=True)) for choice in meaning.world.choices(indices)]


def _agree(left: Side, right: Side, indices: Sequence[str], meaning: Meaning) -> bool:
    world = meaning.world
    return all(world.equal(left(meaning, at), right(meaning, at)) for at in _places(indices, meaning))


def _refute(left: Side, right: Side, indices: Sequence[str], meaning: Meaning) -> Witness | None:
    """Numbers for which the sides differ, or None."""
    world = meaning.world
    assert isinstance(world, Numbers)
    for at in _places(indices, meaning):
        found = left(meaning, at)
        try:
            claimed = right(meaning, at)
        except ZeroDivisionError:
            claimed = mpmath.nan
        if world.equal(found, claimed):
            continue
        nodes = {"correction": world.correction, "mu": world.mu, "var": world.var}
        sides = {"left": found, "right": claimed}
        numbers = {name: _digits(value) for name, value in (world.data | nodes | sides).items()}
        places = {name: place + 1 for name, place in at.items()}
        return numbers | places | {"statistics": "of x" if world.linked else "free"}
    return None


def _digits(value: Value) -> Any:
    """A number as text with 12 digits, or a list of such."""
    if isinstance(value, list):
        return [_digits(entry) for entry in value]
    return mpmath.nstr(mpmath.mpmathify(value), 12, strip_zeros=True).removesuffix(".0")


def _side(node: Node) -> Side:
    return lambda meaning, at: meaning.value(node, at)


def left_side(node: Node) -> Side:
    """The left side: of a definition, what the code computes for the node."""
    if isinstance(node, Name):
        return lambda meaning, at: meaning.definition(node, at)
    return _side(node)


def _is_linked(left: Node, right: Node) -> bool:
    """Whether mu and var are the moments of x here.

    The derivative of one edge is a function of mu and var, and has to agree as such as long as they're mentioned:
    -2 sum(x - mu) and 2 sum(x - mu) aren't the same derivative by mu, although both vanish at the mean.
    """
    edge = isinstance(left, Derivative) and left.top.symbol != "L"
    names = {part.symbol for part in walk(right) if isinstance(part, Name)}
    return not (edge and names & {r"\mu", r"\sigma^2", r"\hat{x}"})


def _judge_step(statement: Statement, k: int, weighted: bool, corrections: Sequence[Value]) -> Step:
    left, right = statement.left, statement.steps[k]
    linked = _is_linked(left, right)

    def outcomes(first: Side, node: Node) -> dict[Value, Outcome]:
        indices = free_indices(node, right)
        return {
            c: decide(first, _side(right), indices, correction=c, weighted=weighted, linked=linked)
            for c in corrections
        }

    found = outcomes(left_side(left), left)
    holds = {c: outcome.holds for c, outcome in found.items()}
    follows = all(holds.values())
    if k and not follows:
        before = statement.steps[k - 1]
        follows = all(outcome.holds for outcome in outcomes(_side(before), before).values())
    witness = next((outcome.witness for outcome in found.values() if not outcome.holds), None)
    slips = statement.slips[k]
    return Step(spell(right), verdict_of(holds, slips), slips, follows, method_of(holds), witness)


@cache
def record(display: source.Display) -> Record:
    """One display, proved or refuted; its correction is proved in the same way."""
    claim = CLAIMS[display.id]
    if claim.corrected and any(step.verdict != "holds" for step in judge(claim.corrected)):
        raise Undecided(f"the correction of display {display.id!r} needs a correction")
    steps = judge(display.latex)
    slips = tuple(dict.fromkeys(slip for step in steps for slip in step.slips))
    if not steps and source.declared_loss() != "L":
        slips = (f"the loss is called L, declared as {source.declared_loss()}",)
    verdict = worst([step.verdict for step in steps] or [verdict_of({}, slips)])
    worst_step = next((step for step in steps if step.verdict == verdict), None)
    method, witness = (worst_step.method, worst_step.witness) if worst_step else (GIVEN, None)
    return Record(
        id=display.id,
        title=claim.title,
        source=display.latex,
        claim=spell_statement(read(display.latex)),
        verdict=verdict,
        corrected=claim.corrected,
        words=claim.text,
        short=claim.short,
        reason=claim.reason,
        method=method,
        witness=witness,
        slips=slips,
        steps=steps,
    )
