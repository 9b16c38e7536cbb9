"""What the functions return: moments, the context of a forward pass, and gradients.

No kernel is run here. The only arithmetic, that of moments, is the one in `equations`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from xhat import equations
from xhat.checks import Array, check_correction, check_output, like_x, shown
from xhat.errors import ArgumentError, ContextError, OutputError, ShapeError
from xhat.layout import View

__all__ = ["Context", "Form", "Gradients", "Moments", "check_backward", "results_for"]


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


# No eq: what was remembered of a form asks for its identity, not for its contents. Neither class is frozen: guarded
# assignments cost microseconds a call.
@dataclass(slots=True, eq=False)
class Form:
    """What forward passes have in common whose arrays differ in their numbers alone. It never changes."""

    shape: tuple[int, ...]
    axis: tuple[int, ...]
    view: View
    count: float
    eps: float
    correction: int
    activation: str | None
    slope: float
    residual: bool
    parameter_dtypes: tuple[np.dtype[Any] | None, np.dtype[Any] | None]

    def context(self, x: Array, statistics: Array, weights: Array | None, y: Array, residual: Array | None,
                overwritten: bool) -> "Context":  # fmt: skip
        """The context of one of them. Its extra: where a residual was added, what tells the activation's side."""
        extra = None if residual is None else {None: None, "leaky_relu": y, "silu": residual}[self.activation]
        return Context(x, statistics, weights, extra, overwritten, self)


@dataclass(slots=True, eq=False, repr=False)
class Context:
    """What the backward pass needs of the forward pass: x itself, O(C) statistics, and nothing else of x's size.

    Where a residual was added before an activation, y (leaky_relu, relu) or the residual (silu) is held too, as
    `extra`: arrays that the caller has anyway. `statistics` are mean, var, gamma and beta in float64, one row each;
    a parameter that was not given has a row without a meaning.
    """

    x: Array
    statistics: Array
    weights: Array | None
    extra: Array | None
    overwritten: bool
    form: Form

    @property
    def mean(self) -> Array:
        """mu."""
        mean: Array = self.statistics[0]
        return mean

    @property
    def var(self) -> Array:
        """The variance, divided by m - correction."""
        var: Array = self.statistics[1]
        return var

    @property
    def gamma(self) -> Array | None:
        """A copy, in float64; None as it was given."""
        return None if self.form.parameter_dtypes[0] is None else self.statistics[2]

    @property
    def beta(self) -> Array | None:
        """Likewise."""
        return None if self.form.parameter_dtypes[1] is None else self.statistics[3]

    @property
    def axis(self) -> tuple[int, ...]:
        """The channel axes, ascending."""
        return self.form.axis

    @property
    def view(self) -> View:
        """How x is walked."""
        return self.form.view

    @property
    def count(self) -> float:
        """m, the sum of weights; infinite for constant statistics."""
        return self.form.count

    @property
    def eps(self) -> float:
        """What was added to the variance."""
        return self.form.eps

    @property
    def correction(self) -> int:
        """0 or 1."""
        return self.form.correction

    @property
    def activation(self) -> str | None:
        """None, "leaky_relu" (relu is one of slope 0) or "silu"."""
        return self.form.activation

    @property
    def slope(self) -> float:
        """Of leaky_relu below zero."""
        return self.form.slope

    @property
    def residual(self) -> bool:
        """Whether there was one."""
        return self.form.residual

    @property
    def parameter_dtypes(self) -> tuple[np.dtype[Any] | None, np.dtype[Any] | None]:
        """Those of gamma and beta, as they were given."""
        return self.form.parameter_dtypes

    @property
    def moments(self) -> Moments:
        """The batch's moments, for running statistics."""
        return Moments(self.count, self.mean, self.var * (self.count - self.correction))

    def __repr__(self) -> str:
        return f"Context(x {self.x.shape} {self.x.dtype}, axis {self.axis}, m {self.count:g})"


def check_backward(dy: Any, context: Any, operation: str) -> Array:
    """dy as an array of x's shape and dtype. Raises ContextError where the context has no gradient, or no longer."""
    if not isinstance(context, Context):
        raise ContextError(
            f"{operation}: context is {type(context).__name__}, expected the context that batch_norm returned "
            "(y, context = xhat.batch_norm(...))."
        )
    if context.overwritten:
        raise ContextError(
            f"{operation}: the forward pass wrote y over x, and the gradient needs x. Give batch_norm another out."
        )
    # They are the caller's, who may have given them another shape in place: the view does not walk that one.
    for name, array in (("x", context.x), ("the residual or y", context.extra)):
        if array is not None and array.shape != context.form.shape:
            raise ContextError(
                f"{operation}: {name} has shape {shown(array.shape)}, and had {shown(context.form.shape)} in the "
                "forward pass. Give it that shape again; reshape(...) makes a view, and leaves the array as it is."
            )
    return like_x(dy, operation, "dy", context.x)


def results_for(out: Any, dy: Array, c: Context, operation: str) -> tuple[Array, Array | None]:
    """Where dx and, behind an activation, dresidual go."""
    pair = out if isinstance(out, tuple) else (out, None)
    if len(pair) != 2:
        raise OutputError(
            f"{operation}: out has {len(pair)} arrays, expected dx, or the pair (dx, dresidual)."
        )
    if pair[1] is not None and not c.residual:
        raise OutputError(
            f"{operation}: out has a place for dresidual, expected dx alone: there was no residual."
        )
    inputs = {"dy": dy, "x": c.x, "the context's statistics": c.statistics} | (
        {} if c.extra is None else {"the residual or y": c.extra}
    )
    dx = (
        np.empty_like(c.x, subok=False)
        if pair[0] is None
        else check_output(pair[0], operation, "out", c.x, dy, inputs)
    )
    if pair[1] is None:
        return dx, np.empty_like(c.x, subok=False) if c.residual else None
    return dx, check_output(pair[1], operation, "out[1]", c.x, None, {**inputs, "out[0]": dx})
