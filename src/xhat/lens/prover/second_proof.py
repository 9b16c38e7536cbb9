"""What came after the derivation: the gradient of the gradient, proved for small batches, and running statistics.

Derivatives are SymPy's, of F = sum v dx + a dgamma + b dbeta, with weights and any correction. Then eps is expressed by
rstd, which leaves fractions of polynomials, and these are equal or not. It has a file of its own since the rest of
the derivation is about the first derivatives of one batch.
"""

from collections.abc import Callable
from typing import Any

import numpy
import sympy

from xhat import equations

__all__ = ["AVERAGED", "SECOND", "averages", "second_gradient_holds"]

Value = Any

SIZES = (1, 2, 3)
SECOND = "proved for n = 1, 2, 3 by expansion"
AVERAGED = "proved for every number of batches by induction"


class _Batch:
    """A batch of n symbols: x, w, dy, and the cotangents v of dx, a of dgamma, b of dbeta."""

    def __init__(self, n: int) -> None:
        self.x, self.w, self.dy, self.v = (
            numpy.array(sympy.symbols(f"{name}1:{n + 1}"), dtype=object) for name in ("x", "w", "dy", "v")
        )
        self.a, self.b, self.gamma, self.eps, self.c = sympy.symbols("a b gamma epsilon c")
        self.m = sum(self.w)
        self.mu, m2 = equations.moments(self.x, numpy.sum, self.m, self.w)
        self.var = equations.variance(m2, self.m, self.c)
        self.rstd = equations.reciprocal_std(self.var, self.eps, sympy.sqrt)
        self.xhat = equations.standardize(self.x, self.mu, self.rstd)
        self.sums = equations.gradient_sums(self.dy, self.xhat, numpy.sum)

    def functional(self) -> Value:
        """F, of which the second gradient is the gradient."""
        dx = self._input_gradient(self.dy, *self.sums, self.gamma)
        return numpy.sum(self.v * dx) + self.a * self.sums[1] + self.b * self.sums[0]

    def closed_form(self, second: Callable[..., Any]) -> tuple[Value, Value]:
        """dF/dx and dF/dgamma as the code composes them."""
        cosums = equations.gradient_sums(self.w * self.v, self.xhat, numpy.sum)
        along, across, h_sum, h_sum_xhat, dgamma = second(
            self.sums, cosums, numpy.sum(self.v * self.dy), self.a, gamma=self.gamma, rstd=self.rstd, m=self.m,
            correction=self.c,
        )  # fmt: skip
        h = along * self.dy + across * self.w * self.v
        return self._input_gradient(h, h_sum, h_sum_xhat, 1 / self.rstd), dgamma

    def _input_gradient(self, dy: Value, sum_dy: Value, sum_dy_xhat: Value, gamma: Value) -> Value:
        terms = {"gamma": gamma, "rstd": self.rstd, "m": self.m, "correction": self.c, "w": self.w}
        return equations.input_gradient(dy, self.xhat, sum_dy, sum_dy_xhat, **terms)

    def equal(self, one: Value, other: Value) -> bool:
        """Whether two expressions are the same, once eps = rstd^-2 - var."""
        rstd = sympy.Symbol("rstd", positive=True)
        difference = (one - other).subs(self.eps, rstd**-2 - self.var)
        return bool(
            sympy.expand(sympy.fraction(sympy.together(sympy.powdenest(difference, force=True)))[0]) == 0
        )


def second_gradient_holds(second: Callable[..., Any]) -> bool:
    """Whether these sums make the derivatives of F with respect to x and gamma."""
    for n in SIZES:
        batch = _Batch(n)
        functional = batch.functional()
        dx, dgamma = batch.closed_form(second)
        if not batch.equal(sympy.diff(functional, batch.gamma), dgamma):
            return False
        if not all(batch.equal(sympy.diff(functional, x), d) for x, d in zip(batch.x, dx, strict=True)):
            return False
    return True


def averages(track: Callable[..., Any]) -> bool:
    """Whether weights 1 / batches keep the average: it is the first batch, and stays the average with one more."""
    batch, total, k = sympy.symbols("batch total k")
    first = track(sympy.Symbol("any"), batch, 1) - batch
    next_one = track(total / (k - 1), batch, 1 / k) - (total + batch) / k
    return bool(sympy.simplify(first) == 0 and sympy.simplify(next_one) == 0)
