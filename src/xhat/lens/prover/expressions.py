"""Expression trees of the derivation: node types, traversal, and printing as plain text.

Parsing from LaTeX is in `parse`, evaluation in `evaluate`.
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

INDEXED = ("x", "y", "w", r"\hat{x}")  # symbols with an index


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
    """Kronecker's delta: 1 if the indices are equal, else 0."""

    left: str
    right: str


@dataclass(frozen=True)
class Derivative:
    """A partial derivative, d top / d bottom.

    It belongs to one edge of the graph, unless it is total: then mu and var are functions of x. A derivative of the
    loss is always total.
    """

    top: Name
    bottom: Name
    total: bool = False


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


@dataclass(frozen=True)
class Statement:
    """A display: left = step = step ..., with the notation slips found while parsing each step."""

    left: Node
    steps: tuple[Node, ...]
    slips: tuple[tuple[str, ...], ...]


def walk(node: Node) -> Iterator[Node]:
    """The node and all nodes below it."""
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


# ---------------------------------------------------------------------------------------------- plain text

_WORDS = {
    r"\hat{x}": "xhat",
    r"\mu": "mu",
    r"\sigma^2": "var",
    r"\epsilon": "eps",
    r"\gamma": "gamma",
    r"\beta": "beta",
    "M_2": "m2",
}


def spell_statement(statement: Statement) -> str:
    """left = step = step ..."""
    return " = ".join(map(spell, (statement.left, *statement.steps)))


def spell(node: Node) -> str:
    """The expression on one line, every sum with its extent: dL/dx_i = gamma * sum_j(dL/dy_j * xhat_j)."""
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
        return f"-{_factor(first)}"
    if node.operator == "multiply":
        return " * ".join(map(_factor, node.operands))
    if node.operator == "divide":
        return f"{_factor(first)} / {_atom(rest[0])}"
    if node.operator == "power":
        return f"{_atom(first)}^{_atom(rest[0])}"
    return f"sqrt({spell(first)})"


def _spell_next_term(node: Node) -> str:
    if isinstance(node, Operation) and node.operator == "negate":
        return f" - {_factor(node.operands[0])}"
    return f" + {spell(node)}"


def _factor(node: Node) -> str:
    """The expression as a factor of a product: sums of terms in parentheses."""
    is_sum = isinstance(node, Operation) and node.operator in ("add", "negate")
    return f"({spell(node)})" if is_sum else spell(node)


def _atom(node: Node) -> str:
    """The expression as a denominator, a base or an exponent: every operation but a root in parentheses."""
    is_compound = isinstance(node, Operation) and node.operator != "sqrt"
    return f"({spell(node)})" if is_compound else spell(node)
