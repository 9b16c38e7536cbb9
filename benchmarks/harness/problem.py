"""The data of a case, and its exact results: the equations themselves in float64.

No contestant and no clock live here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.cases import Case
from xhat import equations

__all__ = ["EPS", "Array", "Problem", "Variant", "exact"]

Array = NDArray[Any]
EPS = 1e-5
KINK = 1e-4  # what lies nearer to the kink of an activation may round to either side of it


@dataclass(frozen=True)
class Variant:
    """What is fused into the pass: an activation, and whether a residual is added before it."""

    name: str = "none"
    activation: str | tuple[str, float] | None = None
    residual: bool = False

    @property
    def kind(self) -> tuple[str | None, float]:
        """The activation as the equations take it: a name and a slope; relu is leaky_relu with slope 0."""
        if self.activation == "relu":
            return "leaky_relu", 0.0
        if isinstance(self.activation, tuple):
            return self.activation
        return self.activation, 0.0


@dataclass(frozen=True)
class Problem:
    """x, dy and residual as they lie in memory (`case.stored_shape`); gamma and beta (C,) in float32."""

    case: Case
    x: Array
    dy: Array
    gamma: Array
    beta: Array
    residual: Array

    @classmethod
    def of(cls, case: Case, seed: int = 0, offset: float = 0.5, dy_offset: float = 0) -> "Problem":
        """Normal data of unit variance around `offset`, and gradients around `dy_offset`."""
        random = np.random.default_rng(seed)
        shape, channels = case.stored_shape, case.shape[1]

        def values(scale: float = 1.0, middle: float = 0.0) -> Array:
            return random.standard_normal(shape, np.float32) * np.float32(scale) + np.float32(middle)

        dtype = _dtype(case.dtype)
        gamma, beta = random.uniform(0.5, 1.5, (2, channels)).astype(np.float32)
        x, dy, residual = (
            values(1, offset).astype(dtype),
            values(1, dy_offset).astype(dtype),
            values(0.5).astype(dtype),
        )
        return cls(case, x, dy, gamma, beta - 1, residual)

    def away_from_kinks(self, variants: list[Variant]) -> "Problem":
        """The same with dy = 0 where a pre-activation is so near to 0 that rounding decides its sign."""
        dy = self.dy.copy()
        for variant in variants:
            dy[np.abs(_forward(self, variant)["pre"]) < KINK] = 0
        return Problem(self.case, self.x, dy, self.gamma, self.beta, self.residual)


def _dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # gives NumPy the dtype

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def _forward(problem: Problem, variant: Variant) -> dict[str, Array]:
    """xhat, rstd and the pre-activation, each step in float64."""
    axes = tuple(a for a in range(problem.x.ndim) if a != problem.case.axis)
    x = problem.x.astype(np.float64)
    gamma, beta = (np.expand_dims(p.astype(np.float64), axes) for p in (problem.gamma, problem.beta))
    m = x.size // problem.gamma.size
    mu, m2 = equations.moments(x, lambda a: a.sum(axes, keepdims=True), m)
    var = equations.variance(m2, m)
    rstd = equations.reciprocal_std(var, EPS, np.sqrt)
    pre = equations.normalize(x, mu, rstd, gamma, beta)
    if variant.residual:
        pre += problem.residual.astype(np.float64)
    return {"xhat": equations.standardize(x, mu, rstd), "rstd": rstd, "var": var, "gamma": gamma, "pre": pre}


def exact(problem: Problem, variant: Variant | None = None) -> dict[str, Array]:
    """y, var, dx, dgamma, dbeta and dresidual in float64, from the values of x and dy as they are stored."""
    variant = variant or Variant()
    axes = tuple(a for a in range(problem.x.ndim) if a != problem.case.axis)
    known = _forward(problem, variant)
    activation, slope = variant.kind
    dpre = problem.dy.astype(np.float64)
    if activation is not None:
        dpre *= equations.activation_slope(known["pre"], activation, slope, np)
    sum_dy, sum_dy_xhat = equations.gradient_sums(dpre, known["xhat"], lambda a: a.sum(axes, keepdims=True))
    m = problem.x.size // problem.gamma.size
    dx = equations.input_gradient(
        dpre, known["xhat"], sum_dy, sum_dy_xhat, gamma=known["gamma"], rstd=known["rstd"], m=m
    )
    return {
        "y": equations.activate(known["pre"], activation, slope, np),
        "var": known["var"].ravel(),
        "dx": dx,
        "dgamma": sum_dy_xhat.ravel(),
        "dbeta": sum_dy.ravel(),
        "dresidual": dpre,
    }
