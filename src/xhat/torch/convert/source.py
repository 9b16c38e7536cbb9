"""The source of a method, as a syntax tree, and what an expression in it contains.

What a method may do, and what becomes a guard, must never be decided here.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from types import FunctionType
from typing import Any

import torch
from torch import nn

__all__ = [
    "UntraceableError",
    "attributes",
    "fold_is_scripting",
    "is_only_compared_with_none",
    "parsed",
    "prefixes",
]


class UntraceableError(Exception):
    """No guards can ensure that a trace of the method computes what the method does; the message says why."""


def parsed(module: nn.Module, method: str) -> tuple[FunctionType, ast.FunctionDef]:
    """The function of this method and its syntax tree. Raises UntraceableError if there is no such source."""
    function = getattr(type(module), method)
    if not isinstance(function, FunctionType) or method in vars(module) or hasattr(function, "__wrapped__"):
        raise UntraceableError(f"its {method} is wrapped or replaced")
    with suppress(OSError, TypeError, SyntaxError):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        if isinstance(tree, ast.FunctionDef):
            return function, tree
    raise UntraceableError("its source can't be read")


def fold_is_scripting(e: ast.expr, names: dict[str, Any]) -> ast.expr:
    """The expression with torch.jit.is_scripting() replaced by False, which it is wherever Python runs."""
    folded: ast.expr = _FoldIsScripting(names).visit(e)
    return folded


class _FoldIsScripting(ast.NodeTransformer):
    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def visit_Call(self, node: ast.Call) -> ast.expr:
        is_torchs = self.names.get("torch") is torch and ast.unparse(node) == "torch.jit.is_scripting()"
        return ast.copy_location(ast.Constant(False), node) if is_torchs else node


def prefixes(e: ast.expr) -> list[ast.expr]:
    """For self.a.b[0]: self.a, self.a.b, self.a.b[0]."""
    found: list[ast.expr] = []
    while isinstance(e, ast.Attribute | ast.Subscript):
        found.append(e)
        e = e.value
    return found[::-1]


def attributes(test: ast.expr) -> Iterator[ast.expr]:
    """The attributes in a test, each with everything before it: self.a.b, but not self.a in it."""
    if isinstance(test, ast.Attribute):
        yield test
    else:
        for part in ast.iter_child_nodes(test):
            if isinstance(part, ast.expr):
                yield from attributes(part)


def is_only_compared_with_none(attribute: ast.expr, test: ast.expr) -> bool:
    """Whether the test reads of this attribute only whether it is None: its other properties could change."""
    within = (
        node for node in ast.walk(test) if isinstance(node, ast.Compare) and attribute in ast.walk(node)
    )
    comparison = next(within, None)
    return comparison is not None and all(isinstance(op, ast.Is | ast.IsNot) for op in comparison.ops)
