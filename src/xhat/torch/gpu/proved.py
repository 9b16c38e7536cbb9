"""The lines of `xhat.equations` as Triton functions: the same source, without annotations and docstrings.

Triton compiles Python's syntax tree, so a formula that is proved and tested there need not be written again here.
"""

import ast
import inspect
import linecache
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

from xhat import equations

__all__ = ["merge", "silu_slope", "track", "variance"]


class _Squares(ast.NodeTransformer):
    """x ** 2 becomes x * x: Triton has no power."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.BinOp:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Pow):
            return node
        if not (isinstance(node.right, ast.Constant) and node.right.value == 2):
            raise NotImplementedError(f"a power other than 2: {ast.unparse(node)}")
        return ast.BinOp(node.left, ast.Mult(), node.left)


def _plain(tree: ast.Module) -> ast.FunctionDef:
    """The function, with arguments that have no annotations, and a body without a docstring."""
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    assert not function.args.kwonlyargs
    for argument in function.args.args:
        argument.annotation = None
    function.returns = None
    function.body = function.body[1:] if ast.get_docstring(function) else function.body
    return function


def _compiled(function: Callable[..., Any]) -> Any:
    """A Triton function of these lines. `linecache` holds its source, which Triton reads."""
    tree = ast.parse(inspect.getsource(function))
    _plain(tree)
    source = ast.unparse(ast.fix_missing_locations(_Squares().visit(tree))) + "\n"
    name = f"<{function.__module__}.{function.__name__} in Triton>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"tl": tl, "__name__": __name__}
    exec(compile(source, name, "exec"), scope)
    return triton.jit(scope[function.__name__])


merge = _compiled(equations.merge)
variance = _compiled(equations.variance)
silu_slope = _compiled(equations.silu_slope)
track = _compiled(equations.track)
