"""Evaluates expression trees in a domain.

No formula of a gradient lives here: nodes of the graph are the functions of `equations`, and the domain
differentiates them. A derivative of the loss is a total derivative, through every node between. Any other derivative
belongs to one edge of the graph, on which var is a function of x and mu, and xhat is one of x, mu and var.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add, mul
from typing import Any

from xhat import equations
from xhat.lens.prover.domains import Domain
from xhat.lens.prover.expressions import Delta, Derivative, Name, Node, Number, Operation, Sum

__all__ = ["Evaluator"]

Value = Any


class Evaluator:
    """Evaluates expressions in one domain. Derivatives are cached: most occur in several displays."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self._derivatives: dict[Any, Value] = {}
        rstd = equations.reciprocal_std(domain.var, domain.eps, domain.sqrt)
        self.xhat = equations.standardize(domain.x, domain.mu, rstd)
        self.y = equations.normalize(domain.x, domain.mu, rstd, domain.gamma, domain.beta)
        self.rstd = rstd

    # The graph: each node as a function of the nodes before it.

    def mean_of(self, x: Value) -> Value:
        return equations.moments(x, self.domain.total, self.domain.m, self.domain.w)[0]

    def variance_of(self, x: Value) -> Value:
        m2 = equations.moments(x, self.domain.total, self.domain.m, self.domain.w)[1]
        return equations.variance(m2, self.domain.m, self.domain.correction)

    def variance_about(self, x: Value, mu: Value) -> Value:
        """The variance as a function of x and mu: the two edges into the node."""
        domain = self.domain
        return equations.variance(domain.total(domain.w * (x - mu) ** 2), domain.m, domain.correction)

    def xhat_of(self, x: Value, mu: Value, var: Value) -> Value:
        return equations.standardize(x, mu, equations.reciprocal_std(var, self.domain.eps, self.domain.sqrt))

    def xhat_from(self, x: Value) -> Value:
        """xhat as a function of x alone: mu and var are those of x."""
        return self.xhat_of(x, self.mean_of(x), self.variance_of(x))

    def output_of(self, xhat: Value, gamma: Value, beta: Value) -> Value:
        return equations.normalize(xhat, 0, 1, gamma, beta)

    def loss_of(self, y: Value) -> Value:
        """sum(dy y), a loss with the gradient dy. To first order, every loss is this one plus a constant."""
        return self.domain.total(self.domain.dy * y)

    def loss_from_xhat(self, xhat: Value) -> Value:
        return self.loss_of(self.output_of(xhat, self.domain.gamma, self.domain.beta))

    def loss_from(self, x: Value, mu: Value, var: Value) -> Value:
        rstd = equations.reciprocal_std(var, self.domain.eps, self.domain.sqrt)
        return self.loss_of(equations.normalize(x, mu, rstd, self.domain.gamma, self.domain.beta))

    # Expressions.

    def definition(self, name: Name, at: Mapping[str, Value]) -> Value:
        """The value that the code computes for a node, which is the left side of a definition."""
        domain = self.domain
        if name.symbol == r"\mu":
            return self.mean_of(domain.x)
        if name.symbol == r"\sigma^2":
            return self.variance_of(domain.x)
        if name.symbol == "M_2":
            return equations.moments(domain.x, domain.total, domain.m, domain.w)[1]
        return self.value(name, at)

    def value(self, node: Node, at: Mapping[str, Value]) -> Value:
        """The value of an expression; `at` maps its free indices to positions in the batch."""
        domain = self.domain
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Delta):
            return domain.delta(at[node.left], at[node.right])
        if isinstance(node, Sum):
            return self._sum(node, at)
        if isinstance(node, Derivative):
            return self.derivative(node, at)
        if isinstance(node, Operation):
            return self._operation(node.operator, [self.value(operand, at) for operand in node.operands])
        values = {"x": domain.x, "y": self.y, "w": domain.w, r"\hat{x}": self.xhat}
        if node.symbol in values:
            return domain.at(values[node.symbol], at[str(node.index)])
        if node.symbol == "M_2":
            return self.definition(node, at)
        scalars = {r"\mu": "mu", r"\sigma^2": "var", r"\epsilon": "eps", r"\gamma": "gamma", r"\beta": "beta"}
        scalars |= {"N": "n", "m": "m", "c": "correction"}
        return getattr(domain, scalars[node.symbol])

    def _sum(self, node: Sum, at: Mapping[str, Value]) -> Value:
        def body(position: Value) -> Value:
            return self.value(node.body, {**at, node.index: position})

        whole = self.domain.sum_over(body)
        return whole if node.start == 1 else whole - body(self.domain.first)

    def _operation(self, operator: str, values: list[Value]) -> Value:
        if operator == "add":
            return reduce(add, values)
        if operator == "multiply":
            return reduce(mul, values)
        if operator == "divide":
            return values[0] / (self.domain.n**0 * values[1])  # n**0 is 1 in the number type of the domain
        if operator == "power":
            return values[0] ** values[1]
        return self.domain.sqrt(values[0]) if operator == "sqrt" else -values[0]

    def derivative(self, node: Derivative, at: Mapping[str, Value]) -> Value:
        """d top / d bottom. Raises ValueError if the graph has no such edge."""
        top, bottom = node.top, node.bottom
        above, below = (at.get(str(name.index)) for name in (top, bottom))
        key = (top.symbol, bottom.symbol, node.total, above, below)
        if key not in self._derivatives:
            self._derivatives[key] = self._differentiate(top.symbol, bottom.symbol, node.total, above, below)
        return self._derivatives[key]

    def _differentiate(self, top: str, bottom: str, total: bool, above: Value, below: Value) -> Value:
        domain = self.domain
        x, mu, var, gamma, beta = domain.x, domain.mu, domain.var, domain.gamma, domain.beta

        def pick(values: Value) -> Value:
            return domain.at(values, above)

        functions: dict[tuple[str, str], tuple[Callable[[Value], Value], Value]] = {
            ("L", "y"): (self.loss_of, self.y),
            ("L", r"\hat{x}"): (self.loss_from_xhat, self.xhat),
            ("L", r"\sigma^2"): (lambda v: self.loss_from(x, mu, v), var),
            ("L", r"\mu"): (lambda u: self.loss_from(x, u, self.variance_about(x, u)), mu),
            ("L", "x"): (lambda t: self.loss_from(t, self.mean_of(t), self.variance_of(t)), x),
            ("L", r"\gamma"): (lambda g: self.loss_of(self.output_of(self.xhat, g, beta)), gamma),
            ("L", r"\beta"): (lambda b: self.loss_of(self.output_of(self.xhat, gamma, b)), beta),
            ("y", r"\hat{x}"): (lambda z: pick(self.output_of(z, gamma, beta)), self.xhat),
            ("y", r"\gamma"): (lambda g: pick(self.output_of(self.xhat, g, beta)), gamma),
            ("y", r"\beta"): (lambda b: pick(self.output_of(self.xhat, gamma, b)), beta),
            (r"\hat{x}", "x"): (lambda t: pick(self.xhat_of(t, mu, var)), x),
            (r"\hat{x}", r"\mu"): (lambda u: pick(self.xhat_of(x, u, var)), mu),
            (r"\hat{x}", r"\sigma^2"): (lambda v: pick(self.xhat_of(x, mu, v)), var),
            (r"\sigma^2", "x"): (lambda t: self.variance_about(t, mu), x),
            (r"\sigma^2", r"\mu"): (lambda u: self.variance_about(x, u), mu),
            (r"\mu", "x"): (self.mean_of, x),
        }
        if total or (top, bottom) == ("y", "x"):  # no edge leads from x to y
            functions |= {
                (r"\hat{x}", "x"): (lambda t: pick(self.xhat_from(t)), x),
                ("y", "x"): (lambda t: pick(self.output_of(self.xhat_from(t), gamma, beta)), x),
                (r"\sigma^2", "x"): (self.variance_of, x),
            }
        if (top, bottom) not in functions:
            raise ValueError(f"the graph has no edge from {bottom} to {top}")
        function, point = functions[top, bottom]
        return domain.derivative(function, point, below)
