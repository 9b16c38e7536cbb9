"""Parses equations as they are printed: the grammar of `parse`, and what papers and lectures write beside it.

x / y                           a division on the line, if it is clear where its denominator ends
\\sum -2 (x_i - \\mu)             a sum of a negative product
\\sum (x_i - \\mu)                a sum over the only index of its body
y = \\gamma \\hat{x} + \\beta       an equation for each element, without indices
\\sigma                          the root of the variance
"""

from dataclasses import dataclass, replace

from xhat.lens.prover.expressions import (
    INDEXED,
    Derivative,
    Name,
    Node,
    Operation,
    Statement,
    Sum,
    free_indices,
    walk,
)
from xhat.lens.prover.notation import read
from xhat.lens.prover.parse import Parser, join_sum_bounds

__all__ = ["PrintedStatement", "parse_printed"]

BARE = ""  # the index of a symbol that is printed without one
ELEMENT, SUMMED = "i", "j"  # the indices that such symbols get, outside and inside of sums


@dataclass(frozen=True)
class PrintedStatement:
    """An equation as it was read, and the substitutions that were made."""

    statement: Statement
    notes: tuple[str, ...]


def parse_printed(latex: str) -> tuple[PrintedStatement, ...]:
    """The equations of a display.

    Raises ValueError for what can't be read, and for a display that mixes symbols with and without an index.
    """
    printed = read(latex)
    return tuple(PrintedStatement(_parse(equation), printed.notes) for equation in printed.equations)


def _parse(equation: str) -> Statement:
    sides = join_sum_bounds([side.strip() for side in equation.split("=")])
    left, *steps = _indexed([_parse_side(part) for part in sides], equation)
    clash = set(free_indices(left))
    slips = [
        tuple(
            f"the index {index} is free on the left and bound by the sum"
            for index in sorted(clash & _bound(step))
        )
        for step in steps
    ]
    return Statement(left, tuple(steps), tuple(slips))


def _parse_side(latex: str) -> Node:
    parser = _PrintedParser(latex, "N")
    node = parser.sum_of_terms()
    if parser.peek():
        raise ValueError(f"can't read '{parser.peek()}' in '{latex}'")
    return node


def _bound(node: Node) -> set[str]:
    return {part.index for part in walk(node) if isinstance(part, Sum)}


class _PrintedParser(Parser):
    """The recursive descent of `parse` with the wider grammar."""

    def product(self) -> Node:
        node = super().product()
        while self.peek() == "/":
            self.take()
            node = Operation("divide", (node, self.factor()))
            if self.peek() in (r"\sum", "(", r"\frac", r"\cdot"):
                if self.peek() == r"\cdot":
                    self.take()
                node = Operation("multiply", (node, super().product()))
            elif self.peek() not in (*self.ENDS, "/"):
                raise ValueError(
                    f"'{self.peek()}' after a division may belong to its denominator in '{self.latex}', "
                    r"write \frac{...}{...}"
                )
        return node

    def sum(self) -> Node:
        if self.peek() == "_":
            return super().sum()
        body = self.summand()
        indices = {part.index for part in walk(body) if isinstance(part, Name) and part.symbol in INDEXED}
        indices -= _bound(body)
        if len(indices) != 1:
            raise ValueError(f"a sum without an index, over {len(indices)} indices, in '{self.latex}'")
        return Sum(str(indices.pop()), body)

    def summand(self) -> Node:
        """A product, which may begin with a sign."""
        if self.peek() not in ("+", "-"):
            return self.product()
        negative = self.take() == "-"
        node = self.product()
        return Operation("negate", (node,)) if negative else node

    def name(self, token: str) -> Name | Operation:  # type: ignore[override]
        if token == r"\sigma":
            return Operation("sqrt", (Name(r"\sigma^2"),))
        if token in INDEXED and self.peek() != "_":
            return Name(token, BARE)
        return super().name(token)


def _indexed(nodes: list[Node], equation: str) -> list[Node]:
    """The sides of an equation, with an index for each symbol that is printed without one."""
    names = [
        part for node in nodes for part in walk(node) if isinstance(part, Name) and part.symbol in INDEXED
    ]
    indices = {name.index for name in names}
    if BARE not in indices:
        return nodes
    if indices != {BARE}:
        raise ValueError(f"some symbols have an index and others have none in '{equation}'")
    return [_with_indices(node, ELEMENT) for node in nodes]


def _with_indices(node: Node, index: str) -> Node:
    if isinstance(node, Name):
        return replace(node, index=index) if node.index == BARE else node
    if isinstance(node, Derivative):
        top, bottom = _with_indices(node.top, index), _with_indices(node.bottom, index)
        assert isinstance(top, Name) and isinstance(bottom, Name)
        return Derivative(top, bottom)
    if isinstance(node, Sum):
        inner = SUMMED if node.index == BARE else node.index
        return Sum(inner, _with_indices(node.body, inner), node.start)
    if isinstance(node, Operation):
        return Operation(node.operator, tuple(_with_indices(operand, index) for operand in node.operands))
    return node
