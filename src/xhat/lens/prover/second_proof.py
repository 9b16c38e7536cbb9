"""The proof of the second gradient, by expansion for small batches.

With cotangents v of dx, a of dgamma and b of dbeta, the second gradient is the gradient of
F = sum(v dx) + a dgamma + b dbeta. SymPy differentiates F, with weights and any correction. Then eps is expressed by
rstd, which leaves quotients of polynomials, and these can be compared exactly.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy
import sympy

from xhat import equations

__all__ = ["SECOND", "SIZES", "second_gradient_holds"]

Value = Any

SIZES = (1, 2)  # n = 3 takes most of a minute, and is proved by a test of its own
SECOND = "proved for n = 1 and 2 by expansion (a test proves n = 3)"


class _Batch:
    """A batch of n symbols x, w, dy, the cotangents v, a, b, and the forward and backward pass."""

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
        """F, whose gradient is the second gradient."""
        dx = self._input_gradient(self.dy, *self.sums, self.gamma)
        return numpy.sum(self.v * dx) + self.a * self.sums[1] + self.b * self.sums[0]

    def closed_form(self, second: Callable[..., Any]) -> tuple[Value, Value]:
        """dF/dx and dF/dgamma as the code composes them."""
        cosums = equations.gradient_sums(self.w * self.v, self.xhat, numpy.sum)
        options = {"gamma": self.gamma, "rstd": self.rstd, "m": self.m, "correction": self.c}
        product = numpy.sum(self.v * self.dy)
        along, across, h_sum, h_sum_xhat, dgamma = second(self.sums, cosums, product, self.a, **options)
        h = along * self.dy + across * self.w * self.v
        return self._input_gradient(h, h_sum, h_sum_xhat, 1 / self.rstd), dgamma

    def _input_gradient(self, dy: Value, sum_dy: Value, sum_dy_xhat: Value, gamma: Value) -> Value:
        terms = {"gamma": gamma, "rstd": self.rstd, "m": self.m, "correction": self.c, "w": self.w}
        return equations.input_gradient(dy, self.xhat, sum_dy, sum_dy_xhat, **terms)

    def equal(self, one: Value, other: Value) -> bool:
        """Whether two expressions are equal after the substitution eps = rstd^-2 - var."""
        rstd = sympy.Symbol("rstd", positive=True)
        difference = (one - other).subs(self.eps, rstd**-2 - self.var)
        numerator, _ = sympy.fraction(sympy.together(sympy.powdenest(difference, force=True)))
        return bool(sympy.expand(numerator) == 0)


def second_gradient_holds(second: Callable[..., Any], sizes: Iterable[int] = SIZES) -> bool:
    """Whether these sums give the derivatives of F with respect to x and gamma, for batches of these sizes."""
    return all(_holds_for(_Batch(n), second) for n in sizes)


def _holds_for(batch: _Batch, second: Callable[..., Any]) -> bool:
    functional = batch.functional()
    dx, dgamma = batch.closed_form(second)
    pairs = [(batch.gamma, dgamma), *zip(batch.x, dx, strict=True)]
    return all(batch.equal(sympy.diff(functional, by), closed) for by, closed in pairs)
