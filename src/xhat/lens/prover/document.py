"""The corrected derivation as a text: headings, paragraphs, equations and tables, in the order they are read.

How a block looks in Markdown, HTML or LaTeX is written in `writers`. In texts, `...` is code, **...** is strong
and $...$ is mathematics.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from xhat.lens.prover.corrections import REMARKS
from xhat.lens.prover.prove import PROVED, Record, Step
from xhat.lens.prover.theorems import Theorem

__all__ = [
    "TITLE",
    "Block",
    "Equation",
    "Heading",
    "Note",
    "Points",
    "Table",
    "Text",
    "document",
    "explain",
    "tally",
]

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


@dataclass(frozen=True)
class Note:
    """Blocks set apart from the text: what the source has instead."""

    blocks: tuple["Block", ...]


Block = Union[Heading, Text, Equation, Points, Table, Note]  # noqa: UP007 (Note is about Block)

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
    "without a slip. Where the source has another equation, a note gives it as it stands there, with the reason for "
    "the correction and numbers that refute it.",
    r"**Conventions.** A batch has $N$ values $x_i$, and $\frac{\partial L}{\partial y_i}$, or dy, is the gradient of "
    "the loss by an output. The correction $c$ says what the variance is divided by, $N - c$: by $N$ with $c = 0$, the "
    "source's forward pass and the default of this project, or by $N - 1$ with $c = 1$. A derivative of $L$ is the "
    r"total one, through everything that lies between the node and $L$. Every other derivative is that of one edge of "
    r"the graph, in which $\sigma^2$ is a function of $x$ and $\mu$, and $\hat{x}$ one of $x$, $\mu$ and $\sigma^2$.",
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
    "what doesn't depend on the index comes out, Kronecker's delta picks its term, a sum of ones is $n$. That the mean "
    "and the variance are those of the batch enters as relations between sums.",
    "**n = 2 ... 6.** Every $x$ and dy is a symbol, derivatives are SymPy's, and the difference of the two sides is "
    "expanded.",
    "**50 digits.** Random data; derivatives are finite differences in 200 digits.",
)
_RULES = (
    "An equation that numbers refute is wrong. One that they don't refute counts as proved only if both symbolic "
    "worlds prove it; otherwise no verdict is given at all. It is enough to look at a loss that is linear in $y$: "
    "a first derivative knows nothing else of a loss. The derivative of an edge has to be right as a function of the "
    "mean and the variance as long as it mentions them, not only where they are those of the batch. An equation of "
    "your own can be put to the same test: `xhat derive --equation`.",
)
_CODE = (
    "The closed forms of `xhat/equations.py`, with weights $w_i$ (all 1 without a mask; $m$ is their sum), for every "
    "$N$, unless a line says otherwise, and every correction $c$. "
    "Formula and function are both proved equal to the derivative they stand for.",
)


def document(records: Sequence[Record], theorems: Sequence[Theorem]) -> list[Block]:
    """The whole derivation, corrected, with the reason for every correction."""
    blocks: list[Block] = [Text(text) for text in _ABOUT]
    blocks += [Heading(2, "Verdicts"), Text(tally(records)), _summary(records), Points(_VERDICTS)]
    for number, record in enumerate(records, 1):
        if record.id in _SECTIONS:
            blocks.append(Heading(2, _SECTIONS[record.id]))
        blocks += [Heading(3, f"{number}. {record.title}"), Text(record.words)]
        blocks.append(Equation(record.corrected or record.source))
        if record.verdict != "holds":
            blocks.append(Note(tuple(explain(record))))
    blocks += [Heading(2, "The words between the displays"), Points(REMARKS)]
    blocks += [Heading(2, "What the code computes"), *map(Text, _CODE)]
    for theorem in theorems:
        blocks += _theorem(theorem)
    blocks += [Heading(2, "How it was decided"), *map(Text, _METHOD), Points(_WORLDS), *map(Text, _RULES)]
    return blocks


def tally(records: Sequence[Record]) -> str:
    """How many displays have which verdict, in one sentence."""
    counts = Counter(record.verdict for record in records)
    parts = [f"{count} × {verdict}" for verdict, count in counts.most_common()]
    return f"{len(records)} displays: {', '.join(parts)}."


def explain(record: Record) -> Iterator[Block]:
    """What the source has, why it is corrected, and what refutes it."""
    yield Text(f"**In the source: {record.verdict}.**")
    if record.source != record.corrected:
        yield Equation(record.source)
    yield Text(record.reason)
    lines = [(k, step) for k, step in enumerate(record.steps, 1) if step.verdict != "holds"]
    yield Points(tuple(f"Line {k}, `= {step.claim}`: {_line(step)}" for k, step in lines))
    if record.witness:
        yield Text(_data(record.witness))


def _summary(records: Sequence[Record]) -> Table:
    rows = ((str(k), r.title, r.verdict, r.short) for k, r in enumerate(records, 1))
    return Table(("", "display", "verdict", "why"), tuple(rows))


def _line(step: Step) -> str:
    """The verdict of one line, and its slips; a wrong line may still follow from the one before it."""
    parts = [f"**{step.verdict}**"]
    if step.witness:
        left, right = _rounded(step.witness["left"]), _rounded(step.witness["right"])
        parts[0] += f" (correction {step.witness['correction']}: {left} on the left, {right} here)"
        parts += ["it does follow from the line before"] if step.follows else []
    return "; ".join([*parts, *step.slips]) + "."


def _data(witness: Mapping[str, Any]) -> str:
    def listed(name: str) -> str:
        return f"{name} = ({', '.join(witness[name])})"

    indices = [f"{name} = {value}" for name, value in witness.items() if isinstance(value, int)]
    scalars = [f"{name} = {_rounded(witness[name])}" for name in ("gamma", "eps", "mu", "var")]
    free = " (mu and var are free values here)" if witness["statistics"] == "free" else ""
    given = [listed("x"), listed("dy"), *scalars, f"correction {witness['correction']}", *indices]
    return f"The numbers are for {', '.join(given)}{free}."


def _rounded(digits: str) -> str:
    return f"{float(digits):.6g}"


def _theorem(theorem: Theorem) -> Iterator[Block]:
    yield Heading(3, theorem.claim[0].upper() + theorem.claim[1:])
    yield Equation(theorem.latex)
    computed = f"; computed by `{theorem.code}`" if theorem.code else ""
    proved = "" if theorem.method == PROVED else f"; {theorem.method}"
    yield Text(f"**{theorem.verdict}**{computed}{proved}.")
