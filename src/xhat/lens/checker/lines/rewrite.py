"""Rewrites the source of the code under test so that every value that it computes passes through a hook.

    dx = dxhat * rstd + dmu / n      ->      dx = hook(3, hook(1, dxhat * rstd) + hook(2, dmu / n))

Nothing is evaluated twice, and nothing is run here: the result is a code object for each function of the file. What
the hook does with a value is in `watch`.
"""

import ast
from dataclasses import dataclass, field, replace
from types import CodeType
from typing import Any, TypeVar

__all__ = ["HOOK", "Site", "codes_in", "rewritten"]

Node = TypeVar("Node", bound=ast.AST)
HOOK = "__xhat_watch__"


@dataclass(frozen=True)
class Site:
    """A place whose value is watched: a subexpression, or what a statement stores in a variable."""

    function: str
    line: int
    text: str  # the source of the expression
    source: str  # the line
    name: str = ""  # the variable or the place that gets this value
    # "addend": a variable as a term of a sum; "sum": such a sum; "copy": a variable that gets another one's value;
    # "result": what a function returns; "seen": an array of which a part was set, which can't be replaced
    role: str = ""


@dataclass
class _Rewriter(ast.NodeTransformer):
    lines: list[bytes]  # of the source, since columns are counted in bytes
    first: int
    sites: list[Site] = field(default_factory=list)
    functions: list[str] = field(default_factory=list)
    local: set[str] = field(default_factory=set)  # variables that the function sets

    # ---------------------------------------------------------------- scopes

    def visit_FunctionDef(self, node: Any) -> Any:
        outer = self.local
        self.local = {
            n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        self.functions.append(node.name)
        node.body = self._statements(node.body)
        self.functions.pop()
        self.local = outer
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> Any:
        node.body = [self.visit(s) if isinstance(s, ast.FunctionDef | ast.ClassDef) else s for s in node.body]
        return node

    def visit_match_case(self, node: ast.match_case) -> Any:
        node.body = self._statements(node.body)
        return node

    def _statements(self, body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in body:
            result = self.visit(statement)
            found += result if isinstance(result, list) else [result]
        return found

    # ------------------------------------------------------------ statements

    def visit_Assign(self, node: ast.Assign) -> Any:
        target = node.targets[0]
        if isinstance(target, ast.Tuple | ast.List):
            parts = target.elts
            if isinstance(node.value, ast.Tuple) and len(node.value.elts) == len(parts):
                values = [self._stored(v, t) for v, t in zip(node.value.elts, parts, strict=True)]
                node.value = ast.copy_location(ast.Tuple(values, ast.Load()), node.value)
                return node
            node.value = self.visit(node.value)
            return [node, *(self._after(t, node) for t in parts if isinstance(t, ast.Name))]
        node.value = self._stored(node.value, target)
        if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Name | ast.Attribute):
            return [node, self._after(target.value, node)]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if node.value is not None:
            node.value = self._stored(node.value, node.target)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        node.value = (
            self._operand(node.value) if isinstance(node.op, ast.Add | ast.Sub) else self.visit(node.value)
        )
        target = node.target
        if isinstance(target, ast.Subscript):
            if not isinstance(target.value, ast.Name | ast.Attribute):
                return node
            return [node, self._after(target.value, node)]
        is_sum = isinstance(node.op, ast.Add | ast.Sub)
        return [node, self._after(target, node, role="sum" if is_sum else "")]

    def _stored(self, value: ast.expr, target: ast.expr) -> ast.expr:
        name = "" if isinstance(target, ast.Starred | ast.Tuple | ast.List) else ast.unparse(target)
        if isinstance(value, ast.Name | ast.Attribute):
            return self._hook(value, name, "copy") if isinstance(value, ast.Name) else self._hook(value, name)
        result = self.visit(value)
        if isinstance(result, ast.Call) and getattr(result.func, "id", "") == HOOK:
            number = result.args[0].value - self.first  # type: ignore[attr-defined]
            site = self.sites[number]
            self.sites[number] = replace(site, name=name)
        return result  # type: ignore[no-any-return]

    def _after(self, target: ast.expr, statement: ast.stmt, role: str = "") -> ast.stmt:
        """A statement behind another one, which passes the variable that it has set, or of which it has set a part."""
        text = ast.unparse(target)
        rebind = (
            target.id in self.local if isinstance(target, ast.Name) else not isinstance(statement, ast.Assign)
        )
        load = ast.parse(text, mode="eval").body
        call = self._call(load, statement, text, role if rebind else "seen")
        if not rebind:
            return _placed(ast.Expr(call), statement)
        store = ast.parse(f"{text} = 0").body[0].targets[0]  # type: ignore[attr-defined]
        return _placed(ast.Assign([store], call), statement)

    # ----------------------------------------------------------- expressions

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        return node

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        if isinstance(node.op, ast.Add | ast.Sub):
            node.left, node.right = self._operand(node.left), self._operand(node.right)
            return self._hook(node, "", "sum")
        node.left, node.right = self.visit(node.left), self.visit(node.right)
        return self._hook(node)

    def _operand(self, node: ast.expr) -> ast.expr:
        return self._hook(node, "", "addend") if isinstance(node, ast.Name) else self.visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        node.operand = self.visit(node.operand)
        constant = isinstance(node.operand, ast.Constant)
        return self._hook(node) if isinstance(node.op, ast.USub) and not constant else node

    def visit_Call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute):
            node.func.value = self.visit(node.func.value)
        elif not isinstance(node.func, ast.Name):
            node.func = self.visit(node.func)
        node.args = [self._argument(a) for a in node.args]
        for keyword in node.keywords:
            keyword.value = self.visit(keyword.value)
        return self._hook(node)

    def _argument(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Starred):
            node.value = self.visit(node.value)
            return node
        return self.visit(node)  # type: ignore[no-any-return]

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        self.generic_visit(node)
        return self._hook(node) if isinstance(node.ctx, ast.Load) else node

    def visit_Attribute(self, node: ast.Attribute) -> Any:
        self.generic_visit(node)
        return self._hook(node) if isinstance(node.ctx, ast.Load) and node.attr != "__class__" else node

    def visit_Return(self, node: ast.Return) -> Any:
        if node.value is not None:
            node.value = self._returned(node.value)
        return node

    def _returned(self, node: ast.expr) -> ast.expr:
        if isinstance(node, ast.Tuple | ast.List):
            node.elts = [self._returned(e) for e in node.elts]
            return node
        if isinstance(node, ast.Dict):
            node.values = [self._returned(e) for e in node.values]
            return node
        if isinstance(node, ast.Name):
            return self._hook(node, "", "result")
        result = self.visit(node)
        if isinstance(result, ast.Call) and getattr(result.func, "id", "") == HOOK:
            number = result.args[0].value - self.first  # type: ignore[attr-defined]
            site = self.sites[number]
            self.sites[number] = replace(site, role=site.role or "result")
        return result  # type: ignore[no-any-return]

    def _text(self, node: Any) -> str:
        """The source of a node in one line."""
        lines = self.lines[node.lineno - 1 : node.end_lineno]
        lines = [*lines[:-1], lines[-1][: node.end_col_offset]]
        lines[0] = lines[0][node.col_offset :]
        return " ".join(line.decode().strip() for line in lines)

    def _hook(self, node: ast.expr, name: str = "", role: str = "") -> ast.expr:
        return self._call(node, node, name, role)

    def _call(self, node: ast.expr, where: Any, name: str, role: str) -> ast.Call:
        text = self._text(where)
        function = ".".join(self.functions) or "<module>"
        line = self.lines[where.lineno - 1].decode().strip()
        self.sites.append(Site(function, where.lineno, text, line, name, role))
        call = ast.Call(
            ast.Name(HOOK, ast.Load()), [ast.Constant(self.first + len(self.sites) - 1), node], []
        )
        return _placed(call, where)


def _placed(node: Node, where: Any) -> Node:
    """The node, with the place of another one wherever it has none."""
    for part in ast.walk(node):
        if not hasattr(part, "lineno") or part is node:
            ast.copy_location(part, where)
    return node


def rewritten(
    source: str, filename: str, first: int = 0
) -> tuple[dict[tuple[str, int], CodeType], list[Site]]:
    """The code of every function of a file, with hooks; and the sites by the numbers that the hook gets."""
    tree = ast.parse(source)
    rewriter = _Rewriter(source.encode().splitlines(), first)
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            rewriter.visit(statement)
        else:
            rewriter.generic_visit(statement)
    code = compile(ast.fix_missing_locations(tree), filename, "exec", dont_inherit=True)
    return codes_in(code), rewriter.sites


def codes_in(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """(qualified name, first line) -> code of all functions in a code object."""
    found = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found[constant.co_qualname, constant.co_firstlineno] = constant
            found |= codes_in(constant)
    return found
