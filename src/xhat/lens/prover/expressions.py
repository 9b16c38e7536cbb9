"""The expressions of the derivation, and how to walk them.

How they are read from LaTeX is `reading`'s, what they are worth `meaning`'s.
"""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = [
    "INDEXED",
    "Delta",
    "Derivative",
    "Name",
    "Node",
    "Number",
    "Operation",
    "Statement",
    "Sum",
    "free_indices",
    "spell",
    "spell_statement",
    "walk",
]

INDEXED = ("x", "y", "w", r"\hat{x}")  # the values that have an index


@dataclass(frozen=True)
class Number:
    """A whole number."""

    value: int


@dataclass(frozen=True)
class Name:
    """A symbol, with its index if it has one."""

    symbol: str
    index: str | None = None


@dataclass(frozen=True)
class Delta:
    """Kronecker's delta: 1 where the indices are equal, else 0."""

    left: str
    right: str


@dataclass(frozen=True)
class Derivative:
    """A partial derivative, d top / d bottom."""

    top: Name
    bottom: Name


@dataclass(frozen=True)
class Sum:
    """The sum of body over index = start ... N."""

    index: str
    body: "Node"
    start: int = 1


@dataclass(frozen=True)
class Operation:
    """add, multiply (any number of operands), divide, power (two), sqrt, negate (one)."""

    operator: str
    operands: tuple["Node", ...]


Node = Number | Name | Delta | Derivative | Sum | Operation


def walk(node: Node) -> Iterator[Node]:
    """The node and everything below it."""
    yield node
    if isinstance(node, Operation):
        for operand in node.operands:
            yield from walk(operand)
    elif isinstance(node, Sum):
        yield from walk(node.body)
    elif isinstance(node, Derivative):
        yield from (node.top, node.bottom)


def free_indices(*nodes: Node) -> tuple[str, ...]:
    """The indices that no sum binds, in alphabetical order."""
    return tuple(sorted(set().union(*map(_free, nodes))))


def _free(node: Node) -> set[str]:
    if isinstance(node, Sum):
        return _free(node.body) - {node.index}
    if isinstance(node, Operation):
        return set().union(*map(_free, node.operands))
    if isinstance(node, Derivative):
        return _free(node.top) | _free(node.bottom)
    if isinstance(node, Delta):
        return {node.left, node.right}
    return {node.index} if isinstance(node, Name) and node.symbol in INDEXED and node.index else set()


@dataclass(frozen=True)
class Statement:
    """A display: what stands on the left, each step of the right, and the slips met while reading each step."""

    left: Node
    steps: tuple[Node, ...]
    slips: tuple[tuple[str, ...], ...]


_WORDS = {
    r"\hat{x}": "xhat", r"\mu": "mu", r"\sigma^2": "var", r"\epsilon": "eps", r"\gamma": "gamma", r"\beta": "beta",
    "M_2": "m2",
}  # fmt: skip
_LOOSE = ("add", "negate")  # what needs parentheses inside a product


def spell_statement(statement: Statement) -> str:
    """left = step = step ..."""
    return " = ".join(map(spell, (statement.left, *statement.steps)))


def spell(node: Node) -> str:
    """The expression in plain text: dL/dx_i = gamma * sum_j(dL/dy_j * xhat_j)."""
    if isinstance(node, Number):
        return str(node.value)
    if isinstance(node, Name):
        word = _WORDS.get(node.symbol, node.symbol)
        return f"{word}_{node.index}" if node.index else word
    if isinstance(node, Delta):
        return f"delta_{node.left}{node.right}"
    if isinstance(node, Derivative):
        return f"d{spell(node.top)}/d{spell(node.bottom)}"
    if isinstance(node, Sum):
        index = node.index if node.start == 1 else f"{{{node.index}={node.start}}}"
        return f"sum_{index}({spell(node.body)})"
    return _spell_operation(node)


def _spell_operation(node: Operation) -> str:
    first, *rest = node.operands
    if node.operator == "add":
        return spell(first) + "".join(map(_spell_next_term, rest))
    if node.operator == "negate":
        return f"-{_tight(first)}"
    if node.operator == "multiply":
        return " * ".join(_tight(operand) for operand in node.operands)
    if node.operator == "divide":
        return f"{_tight(first)} / {_atomic(rest[0])}"
    if node.operator == "power":
        return f"{_atomic(first)}^{_atomic(rest[0])}"
    return f"sqrt({spell(first)})"


def _spell_next_term(node: Node) -> str:
    if isinstance(node, Operation) and node.operator == "negate":
        return f" - {_tight(node.operands[0])}"
    return f" + {spell(node)}"


def _tight(node: Node) -> str:
    loose = isinstance(node, Operation) and node.operator in _LOOSE
    return f"({spell(node)})" if loose else spell(node)


def _atomic(node: Node) -> str:
    compound = isinstance(node, Operation) and node.operator != "sqrt"
    return f"({spell(node)})" if compound else spell(node)
