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
    "Sum",
    "free_indices",
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
