"""Spells an expression of the derivation on one line of plain text, as it was read: every sum shows its reach."""

from xhat.lens.expressions import Delta, Derivative, Name, Node, Number, Operation, Sum
from xhat.lens.reading import Statement

__all__ = ["spell", "spell_statement"]

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
