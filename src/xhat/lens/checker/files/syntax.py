"""Functions and classes taken from a syntax tree: they are defined, and no other code of the file runs.

With them come imports of well-known packages, constants, and functions that are written as lambda.
"""

import __future__

import ast
import builtins
import importlib.util
import re
from collections.abc import Iterator
from typing import Any

from xhat.lens.checker.files.kinds import words_of
from xhat.lens.checker.files.pairs import Function
from xhat.lens.checker.files.text import Code, Part, blocks

__all__ = ["define", "described"]

# Packages whose import runs no code of the file's author.
_KNOWN = words_of("""
    abc collections copy dataclasses enum functools itertools jax math numbers numpy operator scipy torch typing
    typing_extensions warnings __future__""")
# Names that code uses without importing them in the cell or the part that was kept.
_GIVEN = {
    "import numpy, math\nimport numpy as np": r"",
    "import torch\nimport torch.nn as nn\nimport torch.nn.functional as F": r"\b(torch|nn|F)\.",
    "import jax\nimport jax.numpy as jnp": r"\b(jax|jnp)\.",
}
_FLAGS = __future__.annotations.compiler_flag  # types in signatures are not evaluated


def define(code: Code, names: dict[str, Any], notes: list[str]) -> None:
    """Define the functions and classes of a file in a namespace; what can't be defined is said in a note."""
    text = "\n".join(part.source for part in code.parts)
    for statements, used in _GIVEN.items():
        package = statements.split()[1].rstrip(",")
        if re.search(used, text) and importlib.util.find_spec(package):
            exec(statements, names)
    failed = []
    for part in code.parts:
        for node in _kept(blocks(part)):
            if not _run(node, part, names) and isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                failed.append(node.name)
    if failed:
        notes.append(f"Not defined without the rest of the file: {', '.join(failed)}.")


def _kept(statements: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in statements:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node
        elif isinstance(node, ast.Import):
            known = [alias for alias in node.names if alias.name.partition(".")[0] in _KNOWN]
            if known:
                yield ast.copy_location(ast.Import(known), node)
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and str(node.module).partition(".")[0] in _KNOWN:
                yield node
        elif isinstance(node, ast.Assign):
            if isinstance(node.value, ast.Lambda) or _is_constant(node.value):
                yield node
        elif isinstance(node, ast.Try):
            yield from _kept([*node.body, *(s for handler in node.handlers for s in handler.body)])
        elif isinstance(node, ast.If) and "__name__" not in ast.dump(node.test):
            yield from _kept([*node.body, *node.orelse])


def _is_constant(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _run(node: ast.stmt, part: Part, names: dict[str, Any]) -> bool:
    """Run one statement; a definition without its decorators and unknown bases where it fails with them."""
    variants = [node]
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        variants.append(_bare(node, names))
    for variant in variants:
        try:
            tree = ast.Module([variant], [])
            exec(compile(tree, part.name, "exec", flags=_FLAGS, dont_inherit=True), names)
            return True
        except (Exception, SystemExit):
            continue
    return False


def _bare(node: ast.FunctionDef | ast.ClassDef, names: dict[str, Any]) -> ast.stmt:
    """A definition without the decorators and the bases whose first name is unknown."""

    def known(expression: ast.expr) -> bool:
        first = next((n.id for n in ast.walk(expression) if isinstance(n, ast.Name)), "")
        return first in names or hasattr(builtins, first)

    fields = {name: getattr(node, name) for name in node._fields}
    fields["decorator_list"] = [d for d in node.decorator_list if known(d)]
    if isinstance(node, ast.ClassDef):
        fields["bases"] = [base for base in node.bases if known(base)]
    return ast.copy_location(type(node)(**fields), node)


def described(code: Code) -> list[Function]:
    """The functions and classes that the text of a file defines, without importing it."""
    found: dict[str, Function] = {}
    for part in code.parts:
        for node in blocks(part):
            for function in _described(node):
                found[function.name] = function
    return list(found.values())


def _makes_function(value: ast.expr) -> bool:
    """Whether an expression is a lambda, or a function of a function, like jit(f) or custom_vjp(f)."""
    if isinstance(value, ast.Call):
        name = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return name in ("jit", "njit", "vmap", "compile", "custom_vjp", "custom_jvp", "partial")
    return isinstance(value, ast.Lambda)


def _described(node: ast.stmt) -> Iterator[Function]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        yield Function(node.name, tuple(argument.arg for argument in arguments))
    elif isinstance(node, ast.ClassDef):
        methods = tuple(n.name for n in node.body if isinstance(n, ast.FunctionDef))
        bases = tuple(base.id for base in node.bases if isinstance(base, ast.Name))
        yield Function(node.name, methods or ("forward",), True, bases)
    elif isinstance(node, ast.Assign) and _makes_function(node.value):
        yield from (Function(target.id) for target in node.targets if isinstance(target, ast.Name))
    elif isinstance(node, (ast.Try, ast.If)):
        for inner in (*node.body, *node.orelse):
            yield from _described(inner)
