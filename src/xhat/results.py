"""What the functions return: moments, the context of a forward pass, and gradients.

No kernel is run here. The only arithmetic, that of moments, is the one in `equations`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xhat import equations
from xhat.checks import Array, check_correction, like_x
from xhat.errors import ArgumentError, ContextError, ShapeError
from xhat.layout import View

__all__ = ["Context", "Gradients", "Moments", "check_backward"]


class Gradients(NamedTuple):
    """What the backward pass returns; None where the forward pass had no such argument."""

    dx: Array
    dgamma: Array | None
    dbeta: Array | None
    dresidual: Array | None


class Moments(NamedTuple):
    """Count, mean and m2 = sum w (x - mean)^2 of each channel, in float64: what batches are merged by."""

    count: float  # type: ignore[assignment]  # the number m, not a tuple's method
    mean: Array
    m2: Array

    def merge(self, *others: "Moments") -> "Moments":
        """The moments of all batches together, by Chan's formula.

        Raises ShapeError where channels differ, ArgumentError for what are no Moments.
        """
        total = self
        for other in others:
            if not isinstance(other, Moments):
                raise ArgumentError(f"merge: got {type(other).__name__}, expected Moments: a.merge(b, c).")
            if other.mean.shape != self.mean.shape:
                raise ShapeError(
                    f"merge: moments have channels {other.mean.shape}, expected {self.mean.shape} like the first."
                )
            if other.count:
                merged = equations.merge(*total, *other) if total.count else other
                total = Moments(*merged)
        return total

    def var(self, correction: int = 0) -> Array:
        """var = m2 / (m - correction). Raises ArgumentError unless m > correction."""
        correction = check_correction(correction, "var")
        if not self.count > correction:
            raise ArgumentError(
                f"var: the count is {self.count:g}, expected more than the correction {correction}. "
                "Merge more batches first."
            )
        variance: Array = equations.variance(self.m2, self.count, correction)
        return variance


@dataclass(slots=True, eq=False, repr=False)  # not frozen: guarded assignments cost microseconds a call
class Context:
    """What the backward pass needs of the forward pass: x itself, O(C) statistics, and nothing else of x's size.

    Where a residual was added before an activation, y (leaky_relu, relu) or the residual (silu) is held too:
    arrays that the caller has anyway. `count` is m, the sum of weights; infinite for constant statistics.
    """

    x: Array
    gamma: Array | None
    beta: Array | None
    mean: Array
    var: Array
    count: float
    eps: float
    correction: int
    weights: Array | None
    axis: tuple[int, ...]
    view: View
    extra: Array | None
    activation: str | None
    slope: float
    residual: bool
    parameter_dtypes: tuple[np.dtype[Any] | None, np.dtype[Any] | None]
    overwritten: bool

    @property
    def moments(self) -> Moments:
        """The batch's moments, for running statistics."""
        return Moments(self.count, self.mean, self.var * (self.count - self.correction))

    def __repr__(self) -> str:
        return f"Context(x {self.x.shape} {self.x.dtype}, axis {self.axis}, m {self.count:g})"


def check_backward(dy: Any, context: Any, operation: str) -> Array:
    """dy as an array of x's shape and dtype. Raises ContextError where the context has no gradient."""
    if not isinstance(context, Context):
        raise ContextError(
            f"{operation}: context is {type(context).__name__}, expected the context that batch_norm returned "
            "(y, context = xhat.batch_norm(...))."
        )
    if context.overwritten:
        raise ContextError(
            f"{operation}: the forward pass wrote y over x, and the gradient needs x. Give batch_norm another out."
        )
    return like_x(dy, operation, "dy", context.x)
