"""The corrected derivation as a text: headings, paragraphs, equations and tables, in the order they are read.

How a block looks in Markdown, HTML or LaTeX is written in `writers`. In texts, `...` is code, **...** is strong.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .claims import REMARKS
from .closed_forms import Theorem
from .proof import Record, Step

__all__ = ["TITLE", "Block", "Equation", "Heading", "Points", "Table", "Text", "document", "explain", "tally"]

TITLE = "Backpropagation through batch normalization, proved"


@dataclass(frozen=True)
class Heading:
    """A heading of level 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Equation:
    """A displayed equation."""

    latex: str


@dataclass(frozen=True)
class Points:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table with a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


Block = Heading | Text | Equation | Points | Table

_SECTIONS = {
    "mean": "Forward pass",
    "output-gradient": "The parameters",
    "path-1": "Path 1: through the normalized value alone",
    "path-2": "Path 2: through the variance",
    "path-3": "Path 3: through the mean",
    "input-gradient": "The sum of the paths",
}

_ABOUT = (
    "This is the derivation that the project starts from. Every displayed equation of it is proved or refuted by "
    "machine, and corrected where it needs it. The equations under the numbered headings are a complete derivation "
    "without a slip; where the source has another equation, it follows as it stands there, with the reason for the "
    "correction and numbers that refute it.",
    "**Conventions.** A batch has N values x, and dy stands for the gradient of the loss L by the output y. The "
    "correction c says what the variance is divided by: N - c, so c = 0 or c = 1. A derivative of L is the total "
    "one, through everything that lies between the node and L. Every other derivative is that of one edge of the "
    "graph, in which the variance is a function of x and mu, and the normalized value one of x, mu and the variance.",
)
_VERDICTS = (
    "**holds**: proved, for correction 0 and for correction 1.",
    "**notation slip**: what is meant is proved; what is written has a slip.",
    "**holds for correction=...**: proved for that convention, refuted for the other.",
    "**wrong**: refuted by numbers, for both conventions. A slip that cancels later is a slip all the same.",
)
_METHOD = (
    "The LaTeX of each display is read by machine, the source's and the corrected one alike, and both sides of every "
    "equals sign are evaluated in three worlds that share neither derivatives nor simplifier. The nodes of the graph "
    "are the functions of `xhat/equations.py`, called on symbols and on numbers; no derivative is written by hand.",
)
_WORLDS = (
    "**Every n.** Symbols, and finite sums over a batch of symbolic size, brought to a normal form: a sum is linear, "
    "what doesn't depend on the index comes out, a Kronecker delta picks its term, a sum of ones is n. That mu and "
    "var are the moments of the batch enters as relations between sums.",
    "**n = 2 ... 6.** Every x and dy is a symbol, derivatives are SymPy's, and the difference of the sides is expanded.",
    "**50 digits.** Random data, derivatives by finite differences in 200 digits.",
)
_RULES = (
    "An equation that numbers refute is wrong. One that they don't refute counts as proved only if both symbolic "
    "worlds prove it; otherwise no verdict is given at all. It is enough to look at a loss that is linear in y: a first "
    "derivative knows nothing else of a loss. The derivative of an edge has to be right as a function of mu and the "
    "variance as long as it mentions them, not only where they are the moments of the batch.",
)
_CODE = (
    "The closed forms of `xhat/equations.py`, with weights w (all 1 without a mask; m is their sum), for every n and "
    "every correction c. Formula and function are proved equal to the derivative they stand for.",
)


def document(records: Sequence[Record], theorems: Sequence[Theorem]) -> list[Block]:
    """The whole derivation, corrected, with the reason for every correction."""
    blocks: list[Block] = [Text(text) for text in _ABOUT]
    blocks += [Heading(2, "Verdicts"), Text(tally(records)), _summary(records), Points(_VERDICTS)]
    for number, record in enumerate(records, 1):
        if record.id in _SECTIONS:
            blocks.append(Heading(2, _SECTIONS[record.id]))
        blocks += _display(number, record)
    blocks += [Heading(2, "The words between the displays"), Points(REMARKS)]
    blocks += [Heading(2, "What the code computes"), *map(Text, _CODE)]
    for theorem in theorems:
        blocks += _theorem(theorem)
    blocks += [Heading(2, "How it was decided"), *map(Text, _METHOD), Points(_WORLDS), *map(Text, _RULES)]
    return blocks


def tally(records: Sequence[Record]) -> str:
    """How many displays have which verdict, in one sentence."""
    counts = Counter(record.verdict for record in records)
    parts = [f"{count} {verdict}" for verdict, count in counts.most_common()]
    return f"Of the {len(records)} displays: {', '.join(parts)}."


def explain(number: int, record: Record) -> Iterator[Block]:
    """What the source has, why it is corrected, and what refutes it; nothing where it holds."""
    if record.verdict == "holds":
        return
    yield Text(f"**In the source: {record.verdict}.**")
    if record.source != record.corrected:
        yield Equation(record.source)
    yield Text(record.reason)
    if len(record.steps) > 1:
        lines = enumerate(record.steps, 1)
        yield Points(tuple(f"Line {k}: {_line(step)}" for k, step in lines if step.verdict != "holds"))
    elif record.slips:
        yield Points(tuple(f"{slip}." for slip in record.slips))
    if record.witness:
        yield Text(_numbers(record.witness))


def _summary(records: Sequence[Record]) -> Table:
    rows = ((str(k), _title(record), record.claim, record.verdict) for k, record in enumerate(records, 1))
    return Table(("", "display", "what it says", "verdict"), tuple(rows))


def _title(record: Record) -> str:
    return record.id.replace("-", " ")


def _display(number: int, record: Record) -> Iterator[Block]:
    yield Heading(3, f"{number}. {_title(record).capitalize()}")
    yield Text(record.claim)
    yield Equation(record.corrected or record.source)
    yield from explain(number, record)


def _line(step: Step) -> str:
    """The verdict of one line, and its slips; a wrong line may still follow from the one before it."""
    inherited = ", though it follows from the line before" if step.follows and step.witness else ""
    return "; ".join([f"**{step.verdict}**{inherited}", *step.slips]) + "."


def _numbers(witness: Mapping[str, Any]) -> str:
    def listed(name: str) -> str:
        return f"{name} = ({', '.join(witness[name])})"

    indices = [f"{name} = {value}" for name, value in witness.items() if isinstance(value, int)]
    scalars = [f"{name} = {_short(witness[name])}" for name in ("gamma", "eps", "mu", "var")]
    given = [listed("x"), listed("dy"), *scalars, f"correction {witness['correction']}", *indices]
    left, right = _short(witness["left"]), _short(witness["right"])
    return f"Numbers: with {', '.join(given)} the left side is {left}, the right side {right}."


def _short(digits: str) -> str:
    return f"{float(digits):.6g}"


def _theorem(theorem: Theorem) -> Iterator[Block]:
    yield Heading(3, theorem.claim[0].upper() + theorem.claim[1:])
    yield Equation(theorem.latex)
    yield Text(f"**{theorem.verdict}**" + (f"; computed by `{theorem.code}`." if theorem.code else "."))
