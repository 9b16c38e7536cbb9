"""Guards: the conditions under which the graph of a method, traced by torch.fx, computes what the method computes.

A trace runs the method once with proxies in place of its inputs. Whatever Python decides in that run (which branch
is taken, what an attribute's value is, which module a name refers to) is fixed in the graph. This file reads the
method's source. It derives a guard, a Python expression of `self`, from each decision that depends on attributes of
the module, and refuses methods that decide by anything else, such as an input's shape. A fused module evaluates its
guards in each call, and runs the original method if one of them is false. The trace itself must never live here.
"""

import ast
from functools import reduce
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from xhat.torch.convert.source import (
    UntraceableError,
    attributes,
    fold_is_scripting,
    is_only_compared_with_none,
    parsed,
    prefixes,
)
from xhat.torch.errors import first_line

__all__ = ["RecordedPaths", "guards_of"]


def guards_of(module: nn.Module, method: str) -> tuple[str, ...]:
    """The guards of a trace of this method: while all of them are true, the graph computes what the method does.

    They compare values of attributes, and check that names still refer to the modules and tensors that torch.fx has
    recorded. Raises UntraceableError if the method has other control flow than tests of attributes, calls anything but
    children, functions of torch and methods of tensors, or changes anything but local variables.
    """
    return tuple(_SourceReader(module, method).read())


class RecordedPaths:
    """The path by which torch.fx records each child and tensor of a module: the first one, whatever the source has."""

    def __init__(self, module: nn.Module) -> None:
        parts = (*module.named_modules(), *module.named_parameters(), *module.named_buffers())
        self._paths = {id(part): path for path, part in parts}

    def __contains__(self, part: Any) -> bool:
        return bool(self._paths.get(id(part)))  # the module itself has an empty path

    def guards(self, source: str, part: Any) -> tuple[str, ...]:
        """A guard that the expression `source` refers to what is at the recorded path; none if they are the same."""
        path = self._paths[id(part)]
        recorded = reduce(lambda text, name: f"getattr({text}, {name!r}, None)", path.split("."), "self")
        return () if source in (f"self.{path}", recorded) else (f"{source} is {recorded}",)


_CONSTANTS = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format, torch.Size)
_TORCH_FUNCTIONS = {
    id(value): f"{space.__name__}.{name}"
    for space in (torch.nn.functional, torch)
    for name, value in vars(space).items()
    if callable(value) and not isinstance(value, type) and not name.startswith("__")
}
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_IN_TESTS = (
    *(ast.Constant, ast.Attribute, ast.Compare, ast.BoolOp, ast.UnaryOp),
    *(ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context),
)


def _is_constant(value: Any) -> bool:
    """Whether a guard can compare with this value, by its repr."""
    return type(value) in _CONSTANTS or (type(value) is tuple and all(map(_is_constant, value)))


class _SourceReader:
    """Reads the statements that the method executes for this module, and collects the guards."""

    def __init__(self, module: nn.Module, method: str) -> None:
        self.module, self.recorded = module, RecordedPaths(module)
        function, self.tree = parsed(module, method)
        self.globals = function.__globals__
        a = self.tree.args
        if self.tree.decorator_list or a.vararg or a.kwarg or a.kwonlyargs or a.posonlyargs or not a.args:
            raise UntraceableError("it is decorated, or has other than plain arguments")
        outer = set(function.__code__.co_freevars) - {"__class__"}
        if outer or not all(map(_is_constant, function.__defaults__ or ())):
            raise UntraceableError(
                "it has names from a function around it, or defaults that are no plain values"
            )
        if a.args[0].arg != "self":
            raise UntraceableError("its first argument is not called self")
        self.locals = {argument.arg for argument in a.args[1:]}  # their values may depend on the inputs
        self.lists: set[str] = set()  # local variables that hold a list which the method made
        self.guards: dict[str, None] = {}  # each once, in the order of the source

    def read(self) -> list[str]:
        """The guards."""
        self.block(self.tree.body)
        return list(self.guards)

    def refusal(self, node: ast.AST, what: str) -> UntraceableError:
        """The error for a node that no guard can cover."""
        method = f"{type(self.module).__name__}.{self.tree.name}"
        return UntraceableError(f"line {getattr(node, 'lineno', 1)} of {method} {what}")

    def block(self, statements: list[ast.stmt]) -> bool:
        """Reads statements up to a return. True if there was one."""
        return any(self.statement(s) for s in statements)

    def statement(self, s: ast.stmt) -> bool:
        """Reads a statement. True if it returns from the method."""
        match s:
            case ast.Pass() | ast.Expr(value=ast.Constant()):
                pass
            case ast.Return(value=value):
                if value is not None:
                    self.expression(value)
                return True
            case ast.If(test=test, body=body, orelse=orelse):
                return self.block(body if self.branch(test) else orelse)
            case ast.Assign(targets=targets, value=value):
                self.expression(value)
                for target in targets:
                    self.assign(target)
                    if isinstance(value, ast.List) and isinstance(target, ast.Name):
                        self.lists.add(target.id)
            case ast.Expr(
                value=ast.Call(func=ast.Attribute(ast.Name(name), "append"), args=[value], keywords=[])
            ) if name in self.lists:
                self.expression(value)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self.expression(value)
                self.assign(target)
            case ast.AugAssign(
                target=ast.Name(), op=ast.Add(), value=value
            ):  # the only one that `trace` records
                self.expression(value)
            case _:
                first = ast.unparse(s).splitlines()[0]
                raise self.refusal(s, f"is `{first}`, which a trace can't follow")
        return False

    def assign(self, target: ast.expr) -> None:
        """An assignment: only local variables may change."""
        match target:
            case ast.Name(id=name) if name != "self":
                self.locals.add(name)
                self.lists.discard(name)
            case ast.Tuple(elts=parts):
                for part in parts:
                    self.assign(part)
            case _:
                raise self.refusal(target, f"changes `{ast.unparse(target)}`")

    def branch(self, test: ast.expr) -> bool:
        """The value of a test, which may depend on attributes of self alone; it becomes a guard."""
        test = fold_is_scripting(test, self.globals)
        for node in ast.walk(test):
            if not isinstance(node, _IN_TESTS) and not (isinstance(node, ast.Name) and node.id == "self"):
                raise self.refusal(test, f"decides by `{ast.unparse(test)}`")
        for attribute in attributes(test):
            value = self.evaluate(attribute)
            known = isinstance(value, nn.Module) or _is_constant(value)
            if not known and not is_only_compared_with_none(attribute, test):
                raise self.refusal(test, f"decides by `{ast.unparse(test)}`")
        taken = bool(self.evaluate(test))
        text = ast.unparse(test)
        self.guards[f"bool({text})" if taken else f"not ({text})"] = None
        return taken

    def expression(self, e: ast.expr) -> None:
        """Reads an expression, or refuses it."""
        if self.is_of_self(e):
            return self.attribute(e)
        match e:
            case ast.Constant():
                pass
            case ast.Name(id=name) if name in self.locals:
                pass
            case ast.Name() | ast.Attribute() if self.global_value(e) is not None:
                if not isinstance(self.global_value(e), torch.dtype | torch.memory_format):
                    raise self.refusal(e, f"reads `{ast.unparse(e)}`")
            case ast.IfExp(test=test, body=body, orelse=orelse):
                self.expression(body if self.branch(test) else orelse)
            case ast.Call():
                self.call(e)
            case ast.Compare(ops=ops) if not all(isinstance(op, _COMPARISONS) for op in ops):
                raise self.refusal(e, f"decides by `{ast.unparse(e)}`")
            case (
                ast.Attribute() | ast.Subscript() | ast.Slice() | ast.BinOp() | ast.UnaryOp() | ast.Compare()
                | ast.Tuple() | ast.List() | ast.Dict()
            ):  # fmt: skip
                for part in ast.iter_child_nodes(e):
                    if isinstance(part, ast.expr):
                        self.expression(part)
            case _:
                raise self.refusal(e, f"has `{ast.unparse(e)}`, which a trace can't follow")
        return None

    def attribute(self, e: ast.expr) -> None:
        """An attribute of self: a tensor is read in each call, and the value of anything else becomes a guard."""
        value: Any = self.module
        for prefix in prefixes(e):
            value = self.evaluate(prefix)
            if isinstance(value, Tensor):
                return self.part(
                    prefix, value
                )  # the rest of `e` is an operation on the tensor, which is recorded
        if not _is_constant(value):
            raise self.refusal(e, f"reads `{ast.unparse(e)}`, which is no plain value")
        self.guards[f"{ast.unparse(e)} == {value!r}"] = None
        return None

    def part(self, e: ast.expr, value: Any) -> None:
        """A child or tensor of the module. By another name or a property, `e` may refer to another one later."""
        if value not in self.recorded:
            what = "of tensors that are no parameters" if isinstance(value, Tensor) else "which is no child"
            raise self.refusal(e, f"takes `{ast.unparse(e)}`, {what}")
        self.guards |= dict.fromkeys(self.recorded.guards(ast.unparse(e), value))

    def call(self, e: ast.Call) -> None:
        """A call of a child, of a function of torch, or of a method of a value that depends on the inputs."""
        given = [*e.args, *(k.value for k in e.keywords)]
        if any(isinstance(a, ast.Starred) for a in e.args) or any(k.arg is None for k in e.keywords):
            raise self.refusal(e, f"has `{ast.unparse(e)}`, which a trace can't follow")
        if self.is_of_self(e.func):
            function = self.evaluate(e.func)
            if id(function) in _TORCH_FUNCTIONS:
                self.guards[f"{ast.unparse(e.func)} is {_TORCH_FUNCTIONS[id(function)]}"] = None
            else:
                self.part(e.func, function)
        elif self.global_value(e.func) is not None:
            names = {node.id for a in given for node in ast.walk(a) if isinstance(node, ast.Name)}
            if id(self.global_value(e.func)) not in _TORCH_FUNCTIONS or not names & self.locals:
                raise self.refusal(e, f"calls `{ast.unparse(e.func)}`")
        elif isinstance(e.func, ast.Attribute):
            self.expression(e.func.value)
        else:
            raise self.refusal(e, f"calls `{ast.unparse(e.func)}`")
        for a in given:
            self.expression(a)

    def evaluate(self, e: ast.expr) -> Any:
        """The present value of an expression of self."""
        for node in ast.walk(e):
            if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
                raise self.refusal(e, f"reads `{ast.unparse(e)}`")
        try:
            return eval(compile(ast.Expression(e), "<attribute>", "eval"), {"self": self.module})
        except Exception as error:
            raise self.refusal(e, f"reads `{ast.unparse(e)}`: {first_line(error)}") from None

    def is_of_self(self, e: ast.expr) -> bool:
        """Whether this is self, or reached from self by attributes and constant indices."""
        while isinstance(e, ast.Attribute) or (
            isinstance(e, ast.Subscript) and isinstance(e.slice, ast.Constant)
        ):
            e = e.value
        return isinstance(e, ast.Name) and e.id == "self"

    def global_value(self, e: ast.expr) -> Any:
        """The value of a global name, or of an attribute of an imported module; None for anything else."""
        if isinstance(e, ast.Name):
            return None if e.id in self.locals else self.globals.get(e.id)
        if isinstance(e, ast.Attribute):
            space = self.global_value(e.value)
            return getattr(space, e.attr, None) if isinstance(space, ModuleType) else None
        return None
