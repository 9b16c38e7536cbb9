"""Three domains in which both sides of an equation are evaluated and compared, behind one interface.

    SymbolicSize     symbols and finite sums over a batch of symbolic size n: a proof for every n
    FixedSize        n = 2, 3, ... with every x and dy a symbol: a proof for this n by expansion alone
    HighPrecision    50 digits (mpmath) on given data, derivatives by finite differences: a refutation

The three share no differentiation and no simplification, so that an error in one shows in another. If `linked`, mu
and var are the moments of x, and equations hold on the graph; otherwise they are free values, and equations hold as
functions of mu and var.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import mpmath
import numpy
import sympy

from xhat.lens.prover import normal_form

__all__ = ["DIGITS", "Domain", "FixedSize", "HighPrecision", "SymbolicSize", "random_data"]

Value = Any
DIGITS = 50
_WORKING = 200  # digits of the finite differences
_STEP = mpmath.mpf(10) ** -60


class Domain:
    """A batch (x, dy, w) and its scalars; summation, indexing, differentiation and comparison."""

    x: Value
    dy: Value
    w: Value
    n: Value
    m: Value
    correction: Value
    gamma: Value
    beta: Value
    eps: Value
    mu: Value
    var: Value
    name: str
    infinity: Value = sympy.oo
    first: Value = 0  # the index of the first element

    def sqrt(self, value: Value) -> Value:
        return sympy.sqrt(value)

    def total(self, values: Value) -> Value:
        """The sum over the batch."""
        raise NotImplementedError

    def sum_over(self, body: Callable[[Value], Value]) -> Value:
        """The sum of body(index) over every index."""
        raise NotImplementedError

    def choices(self, indices: Sequence[str]) -> Iterable[Sequence[Value]]:
        """The values of the free indices for which an equation has to be compared."""
        raise NotImplementedError

    def at(self, values: Value, position: Value) -> Value:
        """One element of a batch."""
        return values[position] if isinstance(values, numpy.ndarray) else values

    def derivative(self, function: Callable[[Value], Value], point: Value, position: Value = None) -> Value:
        """d function / d point, or d function / d point[position]; the function is scalar."""
        raise NotImplementedError

    def equal(self, left: Value, right: Value) -> bool:
        raise NotImplementedError

    def delta(self, left: Value, right: Value) -> Value:
        return sympy.KroneckerDelta(left, right)


def _symbols(correction: Value) -> dict[str, Value]:
    """The scalars of the symbolic domains. rstd is a symbol, so that no root appears, and var is expressed by it."""
    gamma, beta, mu = sympy.symbols("gamma beta mu", real=True)
    eps, rstd = sympy.symbols("eps rstd", positive=True)
    scalars = {"gamma": gamma, "beta": beta, "eps": eps, "rstd": rstd, "mu": mu, "var": rstd**-2 - eps}
    return scalars | {"correction": sympy.sympify(correction)}


class SymbolicSize(Domain):
    """A batch of symbolic size n. If linked, mu, rstd and m are defined by relations between sums."""

    first = sympy.Integer(1)

    def __init__(self, correction: Value, *, weighted: bool = False, linked: bool = True) -> None:
        self.__dict__.update(_symbols(correction))
        self.name = "every n"
        self.n = sympy.Symbol("n", integer=True, positive=True)
        self.m = sympy.Symbol("d", positive=True) + self.correction if weighted else self.n
        position = normal_form.POSITION
        self.x, self.dy = sympy.IndexedBase("x")[position], sympy.IndexedBase("dy")[position]
        self.w = sympy.IndexedBase("w")[position] if weighted else sympy.Integer(1)
        squares = (self.m - self.correction) * self.var + self.m * self.mu**2
        self.relations = {
            normal_form.atom(self.w * self.x, self.n): self.m * self.mu,
            normal_form.atom(self.w * self.x**2, self.n): squares,
            normal_form.atom(self.w, self.n): self.m,
        }
        if not linked:
            self.relations = {}

    def total(self, values: Value) -> Value:
        return normal_form.total(sympy.sympify(values), self.n)

    def sum_over(self, body: Callable[[Value], Value]) -> Value:
        index = sympy.Dummy("j", integer=True, positive=True)
        return normal_form.total(sympy.sympify(body(index)), self.n, index)

    def choices(self, indices: Sequence[str]) -> Iterable[Sequence[Value]]:
        return [[sympy.Symbol(index, integer=True, positive=True) for index in indices]]

    def at(self, values: Value, position: Value) -> Value:
        return sympy.sympify(values).xreplace({normal_form.POSITION: sympy.sympify(position)})

    def derivative(self, function: Callable[[Value], Value], point: Value, position: Value = None) -> Value:
        if position is None:
            variable = sympy.Dummy("t")
            return function(variable).diff(variable).xreplace({variable: point})
        family = sympy.IndexedBase("t")
        slope = function(family[normal_form.POSITION]).diff(family[position])
        return slope.replace(
            lambda part: isinstance(part, sympy.Indexed) and part.base == family,
            lambda part: self.at(point, part.indices[0]),
        )

    def equal(self, left: Value, right: Value) -> bool:
        return normal_form.vanishes(sympy.sympify(left) - right, self.relations)


class FixedSize(Domain):
    """A batch of n symbols. If linked, mu, rstd and m stay symbols, and the batch is expressed by them.

    The compared expressions are then polynomials in them, in the deviations z = x - mu, in dy and in w.
    """

    rstd: Value

    def __init__(self, n: int, correction: Value, *, weighted: bool = False, linked: bool = True) -> None:
        self.__dict__.update(_symbols(correction))
        self.name = f"n = {n}"
        self.n = sympy.Integer(n)
        self.x, self.dy = _vector("x", n), _vector("dy", n)
        self.w = _vector("w", n) if weighted else numpy.array([sympy.Integer(1)] * n, dtype=object)
        self.m = sum(self.w)
        self.links: Sequence[Mapping[Value, Value]] = ()
        if linked:
            divisor = sympy.Symbol("d", positive=True) if weighted else self.m - self.correction
            self.links = self._sums(divisor), self._values(divisor)

    def _sums(self, divisor: Value) -> Mapping[Value, Value]:
        """Two sums as symbols: sum(w) = m and sum(w x) = m mu, with m = divisor + c."""
        if self.m.is_Number:
            return {}
        m = divisor + self.correction
        return {sum(self.w * self.x): m * self.mu, self.m: m}

    def _values(self, divisor: Value) -> Mapping[Value, Value]:
        """x, the last weight and eps, chosen such that mu and var are the moments of x."""
        w, z = self.w.copy(), _vector("z", int(self.n))
        w[-1] = divisor + self.correction - sum(w[:-1])
        z[0] = -sum(w[1:] * z[1:]) / w[0]
        eps = self.rstd**-2 - sum(w * z**2) / divisor
        links = dict(zip(self.x, self.mu + z, strict=True)) | {self.eps: eps}
        return links if self.m.is_Number else links | {self.w[-1]: w[-1]}

    def total(self, values: Value) -> Value:
        return numpy.sum(values)

    def sum_over(self, body: Callable[[Value], Value]) -> Value:
        return sympy.Add(*(body(position) for position in self.positions()))

    def positions(self) -> range:
        return range(int(self.n))

    def choices(self, indices: Sequence[str]) -> Iterable[Sequence[Value]]:
        """Every pattern of equal and different indices; equations are symmetric in the elements of the batch."""
        return product(range(min(int(self.n), len(indices))), repeat=len(indices))

    def derivative(self, function: Callable[[Value], Value], point: Value, position: Value = None) -> Value:
        if position is None:
            variable = sympy.Dummy("t")
            return function(variable).diff(variable).xreplace({variable: point})
        variables = _vector("t", int(self.n))
        slope = sympy.sympify(function(variables)).diff(variables[position])
        return slope.xreplace(dict(zip(variables, point, strict=True)))

    def equal(self, left: Value, right: Value) -> bool:
        difference = sympy.sympify(left - right)
        for link in self.links:
            difference = difference.xreplace(link)
        difference = sympy.expand(difference.replace(_is_root, _simplify_root))
        return bool(difference == 0 or sympy.expand(sympy.fraction(sympy.together(difference))[0]) == 0)


class HighPrecision(Domain):
    """Given data in 50 digits. Unless linked, mu and var are moved away from the moments of x."""

    infinity = mpmath.inf

    def __init__(self, data: Mapping[str, Any], correction: Value, *, linked: bool = True) -> None:
        self.name = "50 digits"
        self.data, self.linked = dict(data), linked
        self.x, self.dy = _exact(data["x"]), _exact(data["dy"])
        self.w = _exact(data["w"]) if "w" in data else mpmath.mpf(1)
        self.gamma, self.beta, self.eps = (mpmath.mpf(data[key]) for key in ("gamma", "beta", "eps"))
        self.n = mpmath.mpf(len(self.x))
        with mpmath.workdps(_WORKING):
            self.correction = mpmath.mpf(correction)
            self.m = sum(self.w) if "w" in data else self.n
            self.mu = sum(self.w * self.x) / self.m
            self.var = sum(self.w * (self.x - self.mu) ** 2) / (self.m - self.correction)
        if not linked:
            self.mu, self.var = self.mu + 1, self.var / 2

    def sqrt(self, value: Value) -> Value:
        return mpmath.sqrt(value)

    def total(self, values: Value) -> Value:
        return numpy.sum(values)

    def sum_over(self, body: Callable[[Value], Value]) -> Value:
        return mpmath.fsum(body(position) for position in self.positions())

    def positions(self) -> range:
        return range(len(self.x))

    def choices(self, indices: Sequence[str]) -> Iterable[Sequence[Value]]:
        return product(self.positions(), repeat=len(indices))

    def derivative(self, function: Callable[[Value], Value], point: Value, position: Value = None) -> Value:
        step = _STEP
        if position is not None:
            step = numpy.array(
                [_STEP if k == position else mpmath.mpf(0) for k in self.positions()], dtype=object
            )
        with mpmath.workdps(_WORKING):
            return (function(point + step) - function(point - step)) / (2 * _STEP)

    def equal(self, left: Value, right: Value) -> bool:
        size = max(1, abs(left), abs(right))
        return bool(abs(left - right) <= size * mpmath.mpf(10) ** (5 - DIGITS))

    def delta(self, left: Value, right: Value) -> Value:
        return mpmath.mpf(left == right)


def random_data(seed: int, *, weighted: bool = False) -> dict[str, Any]:
    """Data for HighPrecision: n between 4 and 9, values with 50 random digits."""
    draw = random.Random(seed)
    n = draw.randint(4, 9)

    def digits(low: int, high: int) -> mpmath.mpf:
        with mpmath.workdps(_WORKING):
            return low + mpmath.mpf(draw.randrange(10**DIGITS)) / 10**DIGITS * (high - low)

    data = {"x": [digits(-5, 9) for _ in range(n)], "dy": [digits(-3, 3) for _ in range(n)]}
    scalars = {"gamma": digits(1, 3), "beta": digits(-2, 2), "eps": digits(0, 1)}
    weights = {"w": [digits(1, 3) for _ in range(n)]} if weighted else {}
    return {**data, **scalars, **weights}


def _vector(name: str, n: int) -> Value:
    return numpy.array(sympy.symbols(f"{name}1:{n + 1}", real=True), dtype=object)


def _exact(values: Sequence[Any]) -> Value:
    return numpy.array([mpmath.mpf(value) for value in values], dtype=object)


def _simplify_root(root: Value) -> Value:
    base = sympy.expand(root.base)
    return (sympy.cancel(base) if base.is_Add else base) ** root.exp


def _is_root(expression: Value) -> bool:
    return isinstance(expression, sympy.Pow) and not expression.exp.is_integer
