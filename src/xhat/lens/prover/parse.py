"""Parses the LaTeX of the derivation into expression trees, and records slips of notation.

The grammar covers this dialect only: fractions, roots, powers, sums, partial derivatives, Kronecker's delta and
the symbols of batch normalization. Expressions are evaluated elsewhere.
"""

import re
from dataclasses import dataclass, field
from typing import ClassVar

from xhat.lens.prover.expressions import (
    INDEXED,
    Delta,
    Derivative,
    Name,
    Node,
    Number,
    Operation,
    Statement,
    Sum,
    free_indices,
    walk,
)

__all__ = ["Parser", "join_sum_bounds", "parse"]

SCALARS = ("m", "c", r"\mu", r"\sigma^2", r"\epsilon", r"\gamma", r"\beta", "M_2")


def parse(latex: str, size: str = "N") -> Statement:
    """Parse a display; `size` is the letter declared for the batch size.

    A display without an equals sign gives a statement without steps. Raises ValueError for LaTeX outside of the
    dialect.
    """
    bare = re.sub(r"\\(begin|end)\{aligned\}", "", latex).replace(r"\\", " ").replace("&", " ")
    sides = [side.strip() for side in bare.split("=")]
    sides = join_sum_bounds(sides)
    left, left_slips = _parse_side(sides[0], size)
    steps: list[Node] = []
    slips: list[tuple[str, ...]] = []
    for side in sides[1:]:
        node, found = _parse_side(side, size)
        if not steps:
            found = left_slips + found
        clash = set(free_indices(left)) & {part.index for part in walk(node) if isinstance(part, Sum)}
        found += [f"the index {index} is free on the left and bound by the sum" for index in sorted(clash)]
        steps.append(node)
        slips.append(tuple(dict.fromkeys(found)))
    return Statement(left, tuple(steps), tuple(slips))


def join_sum_bounds(sides: list[str]) -> list[str]:
    """Undo splits at the equals sign of a lower bound, as in \\sum_{i=1}^N."""
    joined = [sides[0]]
    for side in sides[1:]:
        if joined[-1].count("{") > joined[-1].count("}"):
            joined[-1] += "=" + side
        else:
            joined.append(side)
    return joined


def _parse_side(latex: str, size: str) -> tuple[Node, list[str]]:
    parser = Parser(latex, size)
    node = parser.sum_of_terms()
    if parser.peek():
        raise ValueError(f"can't read '{parser.peek()}' in '{latex}'")
    return node, parser.slips


_TOKEN = re.compile(r"\\hat\s*\{x\}|\\sigma\^2|\\left|\\right|\\[a-zA-Z]+|\d+|M_2|[a-zA-Z]|[-+^_{}()=]|\S")


@dataclass
class Parser:
    """Recursive descent: sum_of_terms > product > factor > atom."""

    latex: str
    size: str
    slips: list[str] = field(default_factory=list)

    ENDS: ClassVar = ("", "+", "-", ")", "}", r"\right", "=", "/")  # what a product can't go on with

    def __post_init__(self) -> None:
        self.tokens = _TOKEN.findall(self.latex)
        self.position = 0

    def peek(self, ahead: int = 0) -> str:
        position = self.position + ahead
        return self.tokens[position] if position < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            what = f"'{expected}'" if expected else "an expression"
            found = f"'{token}'" if token else "the end"
            raise ValueError(f"expected {what}, found {found} in '{self.latex}'")
        self.position += 1
        return token

    def sum_of_terms(self) -> Node:
        terms: list[Node] = []
        while not terms or self.peek() in ("+", "-"):
            sign = self.take() if self.peek() in ("+", "-") else "+"
            term = self.product()
            terms.append(Operation("negate", (term,)) if sign == "-" else term)
        return terms[0] if len(terms) == 1 else Operation("add", tuple(terms))

    def product(self) -> Node:
        factors = [self.factor()]
        while self.peek() not in self.ENDS:
            if self.peek() == r"\cdot":
                self.take()
            factors.append(self.factor())
        return factors[0] if len(factors) == 1 else Operation("multiply", tuple(factors))

    def factor(self) -> Node:
        atom = self.atom()
        if self.peek() != "^":
            return atom
        self.take()
        first = self.position
        exponent = self.group()
        # A tower of powers is parsed quickly, but never finishes evaluating.
        if any(t == "^" or (t.isdigit() and int(t) > 99) for t in self.tokens[first : self.position]):
            raise ValueError(f"an exponent above 99, or with a power in it, in '{self.latex}'")
        return Operation("power", (atom, exponent))

    def group(self) -> Node:
        """An argument in braces, or a single token."""
        if self.peek() != "{":
            return self.atom()
        self.take("{")
        node = self.sum_of_terms()
        self.take("}")
        return node

    def atom(self) -> Node:
        token = self.take()
        if token.isdigit():
            return Number(self.number(token))
        if token in ("(", r"\left"):
            return self.parenthesis(token)
        if token == r"\frac":
            return self.fraction()
        if token == r"\sqrt":
            return Operation("sqrt", (self.group(),))
        if token == r"\sum":
            return self.sum()
        if token == r"\delta":
            left, right = self.subscript()
            return Delta(left, right)
        return self.name(token)

    def number(self, token: str) -> int:
        if not token.isdigit():
            raise ValueError(f"expected a number, found '{token}' in '{self.latex}'")
        return int(token)

    def parenthesis(self, opening: str) -> Node:
        if opening == r"\left":
            self.take("(")
        node = self.sum_of_terms()
        if opening == r"\left":
            self.take(r"\right")
        self.take(")")
        return node

    def fraction(self) -> Node:
        below = self.closing_brace() + 2 - self.position
        if r"\partial" not in (self.peek(1), self.peek(below)):
            return Operation("divide", (self.group(), self.group()))
        top, bottom = self.differential(), self.differential()
        return Derivative(top, bottom)

    def closing_brace(self) -> int:
        """The position of the brace that closes the group opened at the current position."""
        depth = 0
        for position in range(self.position, len(self.tokens)):
            depth += {"{": 1, "}": -1}.get(self.tokens[position], 0)
            if depth == 0:
                return position
        raise ValueError(f"unbalanced braces in '{self.latex}'")

    def differential(self) -> Name:
        self.take("{")
        if self.peek() == r"\partial":
            self.take()
        else:
            self.slips.append("a derivative lacks its sign ∂")
        name = Name(self.take()) if self.peek() == "L" else self.name(self.take())
        self.take("}")
        return name

    def sum(self) -> Node:
        """A sum over the product that follows: it ends at the next plus or minus on its level."""
        self.take("_")
        start = 1
        if self.peek() == "{":
            self.take("{")
            index = self.take()
            self.take("=")
            start = self.number(self.take())
            if start not in (1, 2):
                raise ValueError(f"a sum that starts at {start}, neither 1 nor 2, in '{self.latex}'")
            self.take("}")
        else:
            index = self.take()
            self.slips.append(f"the sum over {index} has no lower bound")
        self.take("^")
        if self.group() != Name("N"):
            raise ValueError(f"a sum that doesn't end at {self.size} in '{self.latex}'")
        return Sum(index, self.summand(), start)

    def summand(self) -> Node:
        return self.product()

    def subscript(self) -> list[str]:
        self.take("_")
        if self.peek() != "{":
            return [self.take()]
        self.take("{")
        letters = []
        while self.peek() != "}":
            letters.append(self.take())
        self.take("}")
        return letters

    def name(self, token: str) -> Name:
        token = re.sub(r"\s", "", token)
        if token in ("n", "N"):
            if token != self.size:
                self.slips.append(f"the number of values is called {token}, declared as {self.size}")
            return Name("N")
        if token not in INDEXED + SCALARS:
            raise ValueError(f"can't read '{token}' in '{self.latex}'")
        index = "".join(self.subscript()) if self.peek() == "_" else None
        if (index is None) == (token in INDEXED):
            raise ValueError(f"{token} has {'an' if index else 'no'} index in '{self.latex}'")
        return Name(token, index)
