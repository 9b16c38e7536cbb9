"""What an expression of the derivation is worth in a world: its nodes and derivatives come from `equations`.

No formula of a gradient stands here. Nodes are the functions of `equations`; a derivative is taken by the world.
A derivative of the loss is the total one: through everything that lies between the node and the loss. Any other
derivative is that of one edge of the graph: var is a function of x and mu, xhat of x, mu and var.
"""

from collections.abc import Callable, Mapping
from functools import reduce
from operator import add, mul
from typing import Any

from xhat import equations
from xhat.lens.prover.domains import World
from xhat.lens.prover.expressions import Delta, Derivative, Name, Node, Number, Operation, Sum

__all__ = ["Meaning"]

Value = Any


class Meaning:
    """Evaluates expressions in one world; derivatives are kept, since most are asked for often."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._kept: dict[Any, Value] = {}
        rstd = equations.reciprocal_std(world.var, world.eps, world.sqrt)
        self.xhat = equations.standardize(world.x, world.mu, rstd)
        self.y = equations.normalize(world.x, world.mu, rstd, world.gamma, world.beta)
        self.rstd = rstd

    # The graph, each node as a function of those before it.

    def mean_of(self, x: Value) -> Value:
        return equations.moments(x, self.world.total, self.world.m, self.world.w)[0]

    def variance_of(self, x: Value) -> Value:
        m2 = equations.moments(x, self.world.total, self.world.m, self.world.w)[1]
        return equations.variance(m2, self.world.m, self.world.correction)

    def variance_about(self, x: Value, mu: Value) -> Value:
        """The variance as a function of x and of mu: the two edges into the node."""
        world = self.world
        return equations.variance(world.total(world.w * (x - mu) ** 2), world.m, world.correction)

    def xhat_of(self, x: Value, mu: Value, var: Value) -> Value:
        return equations.standardize(x, mu, equations.reciprocal_std(var, self.world.eps, self.world.sqrt))

    def output_of(self, xhat: Value, gamma: Value, beta: Value) -> Value:
        return equations.normalize(xhat, 0, 1, gamma, beta)

    def loss_of(self, y: Value) -> Value:
        """A loss with the gradient dy; to first order every loss is this one plus a constant."""
        return self.world.total(self.world.dy * y)

    def loss_from_xhat(self, xhat: Value) -> Value:
        return self.loss_of(self.output_of(xhat, self.world.gamma, self.world.beta))

    def loss_from(self, x: Value, mu: Value, var: Value) -> Value:
        rstd = equations.reciprocal_std(var, self.world.eps, self.world.sqrt)
        return self.loss_of(equations.normalize(x, mu, rstd, self.world.gamma, self.world.beta))

    # Expressions.

    def definition(self, name: Name, places: Mapping[str, Value]) -> Value:
        """What the code computes for a node: the left side of a definition."""
        world = self.world
        if name.symbol == r"\mu":
            return self.mean_of(world.x)
        if name.symbol == r"\sigma^2":
            return self.variance_of(world.x)
        if name.symbol == "M_2":
            return equations.moments(world.x, world.total, world.m, world.w)[1]
        return self.value(name, places)

    def value(self, node: Node, places: Mapping[str, Value]) -> Value:
        """The value of an expression, with a place for each of its free indices."""
        world = self.world
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Delta):
            return world.delta(places[node.left], places[node.right])
        if isinstance(node, Sum):
            return self._sum(node, places)
        if isinstance(node, Derivative):
            return self.derivative(node.top, node.bottom, places)
        if isinstance(node, Operation):
            return self._operation(node.operator, [self.value(operand, places) for operand in node.operands])
        values = {"x": world.x, "y": self.y, "w": world.w, r"\hat{x}": self.xhat}
        if node.symbol in values:
            return world.at(values[node.symbol], places[str(node.index)])
        if node.symbol == "M_2":
            return self.definition(node, places)
        scalars = {r"\mu": "mu", r"\sigma^2": "var", r"\epsilon": "eps", r"\gamma": "gamma", r"\beta": "beta"}
        scalars |= {"N": "n", "m": "m", "c": "correction"}
        return getattr(world, scalars[node.symbol])

    def _sum(self, node: Sum, places: Mapping[str, Value]) -> Value:
        def body(place: Value) -> Value:
            return self.value(node.body, {**places, node.index: place})

        whole = self.world.sum_over(body)
        return whole if node.start == 1 else whole - body(self.world.first)

    def _operation(self, operator: str, values: list[Value]) -> Value:
        if operator == "add":
            return reduce(add, values)
        if operator == "multiply":
            return reduce(mul, values)
        if operator == "divide":
            return values[0] / (self.world.n**0 * values[1])  # n**0 is a 1 of the world's own numbers
        if operator == "power":
            return values[0] ** values[1]
        return self.world.sqrt(values[0]) if operator == "sqrt" else -values[0]

    def derivative(self, top: Name, bottom: Name, places: Mapping[str, Value]) -> Value:
        """d top / d bottom. Raises ValueError for a pair that the graph doesn't connect."""
        above, below = (places.get(str(name.index)) for name in (top, bottom))
        key = (top.symbol, bottom.symbol, above, below)
        if key not in self._kept:
            self._kept[key] = self._differentiate(top.symbol, bottom.symbol, above, below)
        return self._kept[key]

    def _differentiate(self, top: str, bottom: str, above: Value, below: Value) -> Value:
        world = self.world
        x, mu, var, gamma, beta = world.x, world.mu, world.var, world.gamma, world.beta

        def pick(values: Value) -> Value:
            return world.at(values, above)

        functions: dict[tuple[str, str], tuple[Callable[[Value], Value], Value]] = {
            ("L", "y"): (self.loss_of, self.y),
            ("L", r"\hat{x}"): (self.loss_from_xhat, self.xhat),
            ("L", r"\sigma^2"): (lambda v: self.loss_from(x, mu, v), var),
            ("L", r"\mu"): (lambda u: self.loss_from(x, u, self.variance_about(x, u)), mu),
            ("L", "x"): (lambda t: self.loss_from(t, self.mean_of(t), self.variance_of(t)), x),
            ("L", r"\gamma"): (lambda g: self.loss_of(self.output_of(self.xhat, g, beta)), gamma),
            ("L", r"\beta"): (lambda b: self.loss_of(self.output_of(self.xhat, gamma, b)), beta),
            ("y", r"\hat{x}"): (lambda z: pick(self.output_of(z, gamma, beta)), self.xhat),
            (r"\hat{x}", "x"): (lambda t: pick(self.xhat_of(t, mu, var)), x),
            (r"\hat{x}", r"\mu"): (lambda u: pick(self.xhat_of(x, u, var)), mu),
            (r"\hat{x}", r"\sigma^2"): (lambda v: pick(self.xhat_of(x, mu, v)), var),
            (r"\sigma^2", "x"): (lambda t: self.variance_about(t, mu), x),
            (r"\sigma^2", r"\mu"): (lambda u: self.variance_about(x, u), mu),
            (r"\mu", "x"): (self.mean_of, x),
        }
        if (top, bottom) not in functions:
            raise ValueError(f"the graph has no edge from {bottom} to {top}")
        function, point = functions[top, bottom]
        return world.derivative(function, point, below)
