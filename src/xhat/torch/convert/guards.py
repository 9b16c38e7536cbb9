"""Reads the source of a method: whether a trace of it is faithful, and under which conditions.

Running a method once with stand-ins for its inputs freezes whatever Python decided on the way. So nothing may decide
but the module's own attributes, whose values become conditions. The trace itself must never live here.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from xhat.torch.convert.recorded import Recorded
from xhat.torch.errors import first_line

__all__ = ["UnfaithfulError", "conditions"]


class UnfaithfulError(Exception):
    """A trace could differ from what the method does; the message says where."""


def conditions(module: nn.Module, method: str) -> tuple[str, ...]:
    """Python expressions of `self` that must be true for a trace of this method to be what the method does.

    They ask for values of attributes, and whether a name still leads to what torch.fx records by another. Raises
    UnfaithfulError where no such conditions are enough: other control flow than tests of attributes, calls of other
    things than children, torch's functions and methods of tensors, changes to anything but local names.
    """
    return tuple(_Reader(module, _function(module, method)).read())


_PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.memory_format, torch.Size)
_TORCH = {
    id(value): f"{space.__name__}.{name}"
    for space in (torch.nn.functional, torch)
    for name, value in vars(space).items()
    if callable(value) and not isinstance(value, type) and not name.startswith("__")
}
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)


def _function(module: nn.Module, method: str) -> FunctionType:
    function = getattr(type(module), method)
    if not isinstance(function, FunctionType) or method in vars(module) or hasattr(function, "__wrapped__"):
        raise UnfaithfulError(f"its {method} is wrapped or replaced")
    return function


def _parsed(function: FunctionType) -> ast.FunctionDef:
    """The method's source, parsed."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        raise UnfaithfulError("its source can't be read") from None
    if not isinstance(tree, ast.FunctionDef):
        raise UnfaithfulError("its source can't be read")
    return tree


def _is_plain(value: Any) -> bool:
    return value is None or type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


class _Reader:
    """Reads the statements that this module would run, and collects what they take from its attributes."""

    def __init__(self, module: nn.Module, function: FunctionType) -> None:
        self.module, self.globals, self.recorded = module, function.__globals__, Recorded(module)
        self.tree = _parsed(function)
        a = self.tree.args
        if self.tree.decorator_list or a.vararg or a.kwarg or a.kwonlyargs or a.posonlyargs or not a.args:
            raise UnfaithfulError("it is decorated, or has other than plain arguments")
        outer = set(function.__code__.co_freevars) - {"__class__"}
        if outer or not all(map(_is_plain, function.__defaults__ or ())):
            raise UnfaithfulError(
                "it has names from a function around it, or defaults that are no plain values"
            )
        self.me = a.args[0].arg
        if self.me != "self":
            raise UnfaithfulError("its first argument is not called self")
        self.inside = {argument.arg for argument in a.args[1:]}  # names of values that the inputs decide
        self.lists: set[str] = set()  # names of lists that the method made
        self.conditions: dict[str, None] = {}  # in the order of reading, each once

    def read(self) -> list[str]:
        self.block(self.tree.body)
        return list(self.conditions)

    def refuse(self, node: ast.AST, what: str) -> UnfaithfulError:
        method = f"{type(self.module).__name__}.{self.tree.name}"
        return UnfaithfulError(f"line {getattr(node, 'lineno', 1)} of {method} {what}")

    def block(self, statements: list[ast.stmt]) -> bool:
        """Reads statements; True when one of them returned."""
        return any(self.statement(s) for s in statements)

    def statement(self, s: ast.stmt) -> bool:
        match s:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.Return(value=value):
                if value is not None:
                    self.expression(value)
                return True
            case ast.If(test=test, body=body, orelse=orelse):
                return self.block(body if self.decided(test) else orelse)
            case ast.Assign(targets=targets, value=value):
                self.expression(value)
                for target in targets:
                    self.target(target)
                    self.lists |= (
                        {target.id} if isinstance(value, ast.List) and isinstance(target, ast.Name) else set()
                    )
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(ast.Name(name), "append"), args=[value], keywords=[])
            ) if name in self.lists:
                self.expression(value)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self.expression(value)
                self.target(target)
            case ast.AugAssign(target=ast.Name(), op=ast.Add(), value=value):  # tracing.py records no other
                self.expression(value)
            case _:
                first = ast.unparse(s).splitlines()[0]
                raise self.refuse(s, f"is `{first}`, which a trace can't follow")
        return False

    def target(self, t: ast.expr) -> None:
        match t:
            case ast.Name(id=name) if name != self.me:
                self.inside.add(name)
                self.lists.discard(name)
            case ast.Tuple(elts=parts):
                for part in parts:
                    self.target(part)
            case _:
                raise self.refuse(t, f"changes `{ast.unparse(t)}`")

    def decided(self, test: ast.expr) -> bool:
        """Which way a test goes; it may ask nothing but attributes of self."""
        test = _WithoutScripting(self.globals).visit(test)
        for node in ast.walk(test):
            known = isinstance(node, ast.Constant | ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Attribute
                               | ast.cmpop | ast.boolop | ast.unaryop | ast.expr_context)  # fmt: skip
            if not known and not (isinstance(node, ast.Name) and node.id == self.me):
                raise self.refuse(test, f"decides by `{ast.unparse(test)}`")
        for chain in _chains(test):
            value = self.value(chain)
            if not (isinstance(value, nn.Module) or _is_plain(value) or _compared_with_none(test, chain)):
                raise self.refuse(test, f"decides by `{ast.unparse(test)}`")
        taken = bool(self.value(test))
        text = ast.unparse(test)
        self.conditions[f"bool({text})" if taken else f"not ({text})"] = None
        return taken

    def value(self, e: ast.expr) -> Any:
        """What an expression of self is, now."""
        for node in ast.walk(e):
            if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
                raise self.refuse(e, f"reads `{ast.unparse(e)}`")
        try:
            return eval(compile(ast.Expression(e), "<attribute>", "eval"), {"self": self.module})
        except Exception as error:
            raise self.refuse(e, f"reads `{ast.unparse(e)}`: {first_line(error)}") from None

    def expression(self, e: ast.expr) -> None:
        if self.rooted(e):
            return self.attribute(e)
        match e:
            case ast.Constant():
                pass
            case ast.Name(id=name) if name in self.inside:
                pass
            case ast.Name() | ast.Attribute() if self.known(e) is not None:
                if not isinstance(self.known(e), torch.dtype | torch.memory_format):
                    raise self.refuse(e, f"reads `{ast.unparse(e)}`")
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.expression(body if self.decided(test) else orelse)
            case ast.Call():
                self.call(e)
            case ast.Compare(ops=ops) if not all(isinstance(op, _COMPARISONS) for op in ops):
                raise self.refuse(e, f"decides by `{ast.unparse(e)}`")
            case (
                ast.Attribute() | ast.Subscript() | ast.Slice() | ast.BinOp() | ast.UnaryOp() | ast.Compare()
                | ast.Tuple() | ast.List() | ast.Dict()
            ):  # fmt: skip
                for part in ast.iter_child_nodes(e):
                    if isinstance(part, ast.expr):
                        self.expression(part)
            case _:
                raise self.refuse(e, f"has `{ast.unparse(e)}`, which a trace can't follow")
        return None

    def rooted(self, e: ast.expr) -> bool:
        """Whether this is self, an attribute of it, or an attribute or an item with a constant index of such a one."""
        while isinstance(e, ast.Attribute) or (
            isinstance(e, ast.Subscript) and isinstance(e.slice, ast.Constant)
        ):
            e = e.value
        return isinstance(e, ast.Name) and e.id == self.me

    def known(self, e: ast.expr) -> Any:
        """What a global name, or an attribute of an imported module, is; None for anything else."""
        if isinstance(e, ast.Name):
            return None if e.id in self.inside else self.globals.get(e.id)
        if isinstance(e, ast.Attribute):
            space = self.known(e.value)
            return getattr(space, e.attr, None) if isinstance(space, ModuleType) else None
        return None

    def attribute(self, e: ast.expr) -> None:
        """A value that is read from self: tensors are read anew by every call, other values are frozen."""
        value: Any = self.module
        for part in _links(e):
            value = self.value(part)
            if isinstance(value, Tensor):
                return self.named(part, value)  # what follows is asked of the tensor, and recorded
        if not _is_plain(value):
            raise self.refuse(e, f"reads `{ast.unparse(e)}`, which is no plain value")
        self.conditions[f"{ast.unparse(e)} == {value!r}"] = None
        return None

    def named(self, e: ast.expr, value: Any) -> None:
        """A child or tensor of this name: another name or a property may lead to it, and elsewhere later."""
        if value not in self.recorded:
            tensor = isinstance(value, Tensor)
            what = "of tensors that are no parameters" if tensor else "which is no child"
            raise self.refuse(e, f"takes `{ast.unparse(e)}`, {what}")
        self.conditions |= dict.fromkeys(self.recorded.conditions(ast.unparse(e), value))

    def call(self, e: ast.Call) -> None:
        """Children, torch's functions of the inputs, and methods of what came from the inputs."""
        given = [*e.args, *(k.value for k in e.keywords)]
        if any(isinstance(a, ast.Starred) for a in e.args) or any(k.arg is None for k in e.keywords):
            raise self.refuse(e, f"has `{ast.unparse(e)}`, which a trace can't follow")
        if self.rooted(e.func):
            callee = self.value(e.func)
            if id(callee) in _TORCH:
                self.conditions[f"{ast.unparse(e.func)} is {_TORCH[id(callee)]}"] = None
            else:
                self.named(e.func, callee)
        elif self.known(e.func) is not None:
            names = {node.id for a in given for node in ast.walk(a) if isinstance(node, ast.Name)}
            if id(self.known(e.func)) not in _TORCH or not names & self.inside:
                raise self.refuse(e, f"calls `{ast.unparse(e.func)}`")
        elif isinstance(e.func, ast.Attribute):
            self.expression(e.func.value)
        else:
            raise self.refuse(e, f"calls `{ast.unparse(e.func)}`")
        for a in given:
            self.expression(a)


class _WithoutScripting(ast.NodeTransformer):
    """torch.jit.is_scripting() is False wherever Python runs."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names = names

    def visit_Call(self, node: ast.Call) -> ast.expr:
        space = self.names.get("torch")
        ours = space is torch and ast.unparse(node) == "torch.jit.is_scripting()"
        return ast.copy_location(ast.Constant(False), node) if ours else node


def _links(e: ast.expr) -> list[ast.expr]:
    """self.a, self.a.b, self.a.b[0] of self.a.b[0]."""
    found: list[ast.expr] = []
    while isinstance(e, ast.Attribute | ast.Subscript):
        found.append(e)
        e = e.value
    return found[::-1]


def _chains(test: ast.expr) -> Iterator[ast.expr]:
    """The longest attributes in a test."""
    if isinstance(test, ast.Attribute):
        yield test
    else:
        for part in ast.iter_child_nodes(test):
            if isinstance(part, ast.expr):
                yield from _chains(part)


def _compared_with_none(test: ast.expr, chain: ast.expr) -> bool:
    """Whether all that is asked of this attribute is whether it is None (the answer to more could change)."""
    for node in ast.walk(test):
        if isinstance(node, ast.Compare) and chain in ast.walk(node):
            return all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops)
    return False
