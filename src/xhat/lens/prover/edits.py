"""Small changes of an expression: one symbol, index, sign, power, factor, sum or term is replaced.

Which change makes an equation true is found in `nearest`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, product
from typing import NamedTuple

from xhat.lens.prover.expressions import (
    INDEXED,
    Derivative,
    Name,
    Node,
    Number,
    Operation,
    Sum,
    free_indices,
    spell,
    walk,
)

__all__ = ["Edit", "changes", "eps_at_roots"]

N, GAMMA, VAR, EPS = Name("N"), Name(r"\gamma"), Name(r"\sigma^2"), Name(r"\epsilon")
ONE, TWO = Number(1), Number(2)


def _add(*terms: Node) -> Node:
    return Operation("add", terms)


def _negate(node: Node) -> Node:
    return Operation("negate", (node,))


def _times(*factors: Node) -> Node:
    return Operation("multiply", factors)


def _divided(top: Node, bottom: Node) -> Node:
    return Operation("divide", (top, bottom))


SQUARED_STD = _add(VAR, EPS)
STD = Operation("sqrt", (SQUARED_STD,))
N_MINUS_1 = _add(N, _negate(ONE))
FACTORS = (N, GAMMA, STD, SQUARED_STD, TWO, N_MINUS_1)


Kind = Callable[[Node, tuple[str, ...]], Iterator[Node]]


class Edit(NamedTuple):
    """A part of a tree and what replaces it."""

    result: Node
    old: Node
    new: Node

    def __str__(self) -> str:
        old, new = _unsigned(self.old, self.new)
        for factor in FACTORS:
            if new == _multiplied(old, factor):
                return f"{spell(old)} lacks the factor {spell(factor)}"
            if new == _quotient(old, factor):
                return f"{spell(old)} has to be divided by {spell(factor)}"
        if isinstance(new, Operation) and new.operator == "add" and new.operands[0] == old:
            return f"the term {spell(new.operands[1])} is missing"
        return f"{spell(old)} should be {spell(new)}"


def _unsigned(old: Node, new: Node) -> tuple[Node, Node]:
    """Both without their sign, if both have one."""
    if all(isinstance(node, Operation) and node.operator == "negate" for node in (old, new)):
        assert isinstance(old, Operation) and isinstance(new, Operation)
        return old.operands[0], new.operands[0]
    return old, new


def changes(right: Node, left: Node, in_scope: tuple[str, ...]) -> Iterator[tuple[Edit, ...]]:
    """One edit, the plainest kinds first; then two factors at once, in different terms."""
    kinds = (_symbols, _roots, _powers, _signs, _scaled, _with_an_element, _sums)
    for kind in kinds:
        for edit in _everywhere(right, kind, in_scope):
            yield (edit,)
    for edit in (*_without_a_term(right), *_with_a_term(right, left)):
        yield (edit,)
    yield from _two_terms(right)


def _everywhere(node: Node, kind: Kind, in_scope: tuple[str, ...]) -> Iterator[Edit]:
    """The edits of one kind at every place of a tree, from the top down."""
    for new in kind(node, in_scope):
        if new != node:
            yield Edit(new, node, new)
    if isinstance(node, Operation):
        for position, operand in enumerate(node.operands):
            for edit in _everywhere(operand, kind, in_scope):
                yield edit._replace(result=_with_operand(node, position, edit.result))
    elif isinstance(node, Sum):
        for edit in _everywhere(node.body, kind, (*in_scope, node.index)):
            yield edit._replace(result=replace(node, body=edit.result))


def _with_operand(node: Operation, position: int, new: Node) -> Operation:
    operands = list(node.operands)
    operands[position] = new
    return Operation(node.operator, tuple(operands))


# ------------------------------------------------------------------------------- kinds of edits, at one place of a tree


def _symbols(node: Node, in_scope: tuple[str, ...]) -> Iterator[Node]:
    """Another symbol or another index; N for N - 1."""
    if isinstance(node, Derivative):
        if node.top.symbol == "L" and node.bottom.symbol in INDEXED:
            for symbol, index in product(("y", r"\hat{x}"), in_scope):
                yield Derivative(node.top, Name(symbol, index))
    elif isinstance(node, Name) and node.index is not None:
        for symbol, index in product((node.symbol, "x", r"\hat{x}"), in_scope):
            yield Name(symbol, index)
    if node == N:
        yield N_MINUS_1
    if node == N_MINUS_1:
        yield N


def _roots(node: Node, in_scope: tuple[str, ...]) -> Iterator[Node]:
    """eps, its place, and the root of var + eps."""
    eps_outside = _add(Operation("sqrt", (VAR,)), EPS)
    if node in (VAR, Operation("sqrt", (VAR,)), eps_outside, SQUARED_STD):
        yield STD
    if node in (VAR, STD):
        yield SQUARED_STD
    if isinstance(node, Operation) and node.operator == "power" and isinstance(node.operands[1], Operation):
        half = _divided(ONE, TWO)
        for times in (-3, -1, 1, 3):
            exponent = _divided(_negate(Number(-times)) if times < 0 else Number(times), TWO)
            yield Operation("power", (node.operands[0], exponent if abs(times) != 1 or times < 0 else half))


def _signs(node: Node, in_scope: tuple[str, ...]) -> Iterator[Node]:
    if isinstance(node, Operation) and node.operator == "negate":
        yield node.operands[0]
    elif not isinstance(node, Number):
        yield _negate(node)


def _scaled(node: Node, in_scope: tuple[str, ...]) -> Iterator[Node]:
    """The term or factor times one of the factors of the derivation, or divided by it."""
    if isinstance(node, Number | Name) or (isinstance(node, Operation) and node.operator == "negate"):
        return
    for factor in FACTORS:
        yield _quotient(node, factor)
        yield _multiplied(node, factor)


def _quotient(node: Node, factor: Node) -> Node:
    return _without_factor(node, factor) or _divided(node, factor)


def _multiplied(node: Node, factor: Node) -> Node:
    return _without_divisor(node, factor) or _times(factor, node)


def _with_an_element(node: Node, in_scope: tuple[str, ...]) -> Iterator[Node]:
    """A product or a derivative times xhat, the deviation or the gradient of y, at an index in scope."""
    if isinstance(node, Derivative) or (isinstance(node, Operation) and node.operator == "multiply"):
        for index in in_scope:
            x = Name("x", index)
            yield _times(node, Name(r"\hat{x}", index))
            yield _times(node, _add(x, _negate(Name(r"\mu"))))
            yield _times(node, Derivative(Name("L"), Name("y", index)))


def _powers(node: Node, in_scope: tuple[str, ...]) -> Iterator[Node]:
    """A square too many, or too few."""
    if isinstance(node, Operation):
        yield node.operands[0] if node.operator == "power" else Operation("power", (node, TWO))


def _without_factor(node: Node, factor: Node) -> Node | None:
    """The node divided by a factor that it shows, or None."""
    if isinstance(node, Operation) and node.operator == "multiply" and factor in node.operands:
        rest = list(node.operands)
        rest.remove(factor)
        return rest[0] if len(rest) == 1 else _times(*rest)
    if isinstance(node, Operation) and node.operator == "divide" and node.operands[0] == factor:
        return _divided(ONE, node.operands[1])
    return None


def _without_divisor(node: Node, factor: Node) -> Node | None:
    """The node times a factor that it is visibly divided by, or None."""
    if not (isinstance(node, Operation) and node.operator == "divide"):
        return None
    top, bottom = node.operands
    if bottom == factor:
        return top
    rest = _without_factor(bottom, factor)
    return None if rest is None else _divided(top, rest)


def _sums(node: Node, in_scope: tuple[str, ...]) -> Iterator[Node]:
    """A sum too many, or too few."""
    if isinstance(node, Sum):
        for index in in_scope:
            yield _renamed(node.body, node.index, index)
        if node.start != 1:
            yield replace(node, start=1)
    elif isinstance(node, Derivative | Name | Operation) and free_indices(node):
        for index in free_indices(node):
            yield Sum("j", _renamed(node, index, "j"))


def _renamed(node: Node, old: str, new: str) -> Node:
    if isinstance(node, Name):
        return replace(node, index=new) if node.index == old else node
    if isinstance(node, Derivative):
        top, bottom = _renamed(node.top, old, new), _renamed(node.bottom, old, new)
        assert isinstance(top, Name) and isinstance(bottom, Name)
        return replace(node, top=top, bottom=bottom)
    if isinstance(node, Sum):
        return node if node.index == old else replace(node, body=_renamed(node.body, old, new))
    if isinstance(node, Operation):
        return Operation(node.operator, tuple(_renamed(operand, old, new) for operand in node.operands))
    return node


# ---------------------------------------------------------------------------------------------------- whole terms


def _without_a_term(node: Node) -> Iterator[Edit]:
    for part in walk(node):
        if isinstance(part, Operation) and part.operator == "add":
            for position in range(len(part.operands)):
                rest = part.operands[:position] + part.operands[position + 1 :]
                new = rest[0] if len(rest) == 1 else _add(*rest)
                yield Edit(_replaced(node, part, new), part, new)


def _with_a_term(node: Node, left: Node) -> Iterator[Edit]:
    """One of the three paths, where the left side is the gradient of x; else beta."""
    terms: list[Node] = [Name(r"\beta")]
    if isinstance(left, Derivative) and left.bottom.symbol == "x" and left.top.symbol == "L":
        i, dy = left.bottom.index, Derivative(Name("L"), Name("y", "j"))
        xhat_j, xhat_i = Name(r"\hat{x}", "j"), Name(r"\hat{x}", i)
        scale = _divided(GAMMA, _times(N, STD))
        terms = [
            _times(_divided(GAMMA, STD), Derivative(Name("L"), Name("y", i))),
            _negate(_times(scale, Sum("j", dy))),
            _negate(_times(scale, xhat_i, Sum("j", _times(dy, xhat_j)))),
        ]
    for term in terms:
        yield Edit(_add(node, term), node, _add(node, term))


def _replaced(node: Node, old: Node, new: Node) -> Node:
    if node == old:
        return new
    if isinstance(node, Sum):
        return replace(node, body=_replaced(node.body, old, new))
    if isinstance(node, Operation):
        return Operation(node.operator, tuple(_replaced(operand, old, new) for operand in node.operands))
    return node


def _two_terms(node: Node) -> Iterator[tuple[Edit, ...]]:
    """Two terms of one sum, each with another factor or sign."""
    for part in walk(node):
        if not (isinstance(part, Operation) and part.operator == "add"):
            continue
        for a, b in combinations(range(len(part.operands)), 2):
            for one, other in product(*(list(_other_terms(part.operands[p])) for p in (a, b))):
                first = _with_operand(part, a, one)
                both = _with_operand(first, b, other)
                yield (
                    Edit(_replaced(node, part, first), part.operands[a], one),
                    Edit(_replaced(node, part, both), part.operands[b], other),
                )


def _other_terms(term: Node) -> Iterator[Node]:
    """The term with the other sign, or with another factor."""
    yield from _signs(term, ())
    if isinstance(term, Operation) and term.operator == "negate":
        yield from map(_negate, _scaled(term.operands[0], ()))
    else:
        yield from _scaled(term, ())


def eps_at_roots(node: Node) -> Iterator[Edit]:
    """eps at the root of every variance, if eps is nowhere in the expression."""
    root = Operation("sqrt", (VAR,))
    if root in walk(node) and EPS not in walk(node):
        yield Edit(_replaced(node, root, STD), root, STD)
