"""What the functions return: moments, the context of a forward pass, gradients, and dx path by path.

No kernel is run here. The only arithmetic is that of `equations`, in NumPy and float64.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xhat import equations
from xhat.checks import Array, check_correction, check_like_x, plain_array, shown
from xhat.equations import Paths
from xhat.errors import ArgumentError, ContextError, OutputError, ShapeError, XhatError
from xhat.operands import as_mask, check_output
from xhat.plan import ITEM_SIZES, Plan

__all__ = ["Context", "Gradients", "Moments", "changed", "check_backward", "gradient_paths", "results_for"]

# What a context raises whose fields were exchanged: of the kernels IndexError, where they would leave an array.
_CHANGED = (AttributeError, IndexError, KeyError, OverflowError, RuntimeError, TypeError, ValueError)


class Gradients(NamedTuple):
    """The gradients of one forward pass, as `batch_norm_backward` returns them.

    Attributes
    ----------
    dx : ndarray
        The gradient with respect to x, in its shape, dtype and memory order.
    dgamma : ndarray or None
        The gradient with respect to gamma, in its dtype. None if the forward pass had no gamma.
    dbeta : ndarray or None
        The gradient with respect to beta, in its dtype. None if the forward pass had no beta.
    dresidual : ndarray or None
        The gradient with respect to the residual, in the shape and dtype of x. None if the forward pass had no
        residual.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, context = xhat.batch_norm(x, gamma=np.ones(1))
    >>> gradients = xhat.batch_norm_backward(np.ones_like(x), context)
    >>> gradients.dgamma.shape
    (1,)
    >>> gradients.dbeta is None
    True
    """

    dx: Array
    dgamma: Array | None
    dbeta: Array | None
    dresidual: Array | None


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each channel.

    ::

        m = sum w     mu = sum w x / m     m2 = sum w (x - mu)^2

    `moments` returns them. The moments of two batches can be merged into those of both together.

    Attributes
    ----------
    count : float
        m, the number of values per channel, or the sum of their weights. It is the same for all channels.
    mean : ndarray of float64
        mu, in the shape of the channels.
    m2 : ndarray of float64
        The sum of squared deviations from the mean, in the shape of the channels.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> a = xhat.moments(np.array([[1.0], [2.0]]))
    >>> b = xhat.moments(np.array([[6.0]]))
    >>> both = a.merge(b)
    >>> both.count, both.mean.tolist(), both.m2.tolist()
    (3.0, [3.0], [14.0])
    """

    count: float  # type: ignore[assignment]  # the number m, not a tuple's method
    mean: Array
    m2: Array

    def merge(self, *others: "Moments") -> "Moments":
        """Merge these moments with those of other batches.

        ::

            m  = ma + mb
            mu = mu_a + delta mb / m                   delta = mu_b - mu_a
            m2 = m2_a + m2_b + delta^2 ma mb / m

        Parameters
        ----------
        *others : Moments
            The moments of other batches, of the same channels. Moments with count 0 change nothing.

        Returns
        -------
        Moments
            The moments of all batches together.

        Raises
        ------
        ShapeError
            If the channels differ.
        ArgumentError
            If an argument is no `Moments`.

        References
        ----------
        Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.

        Examples
        --------
        >>> import numpy as np
        >>> import xhat
        >>> x = np.arange(8.0).reshape(4, 2)
        >>> a, b, c = xhat.moments(x[:1]), xhat.moments(x[1:2]), xhat.moments(x[2:])
        >>> a.merge(b, c).m2.tolist()
        [20.0, 20.0]
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
        """Return the variance, ``m2 / (m - correction)``.

        Parameters
        ----------
        correction : {0, 1}, default 0
            0 for the variance of these values, 1 for the unbiased estimate of the variance of their distribution.

        Returns
        -------
        ndarray of float64
            The variance, in the shape of the channels.

        Raises
        ------
        ArgumentError
            Unless the count is greater than the correction, and for another correction.

        Examples
        --------
        >>> import numpy as np
        >>> import xhat
        >>> found = xhat.moments(np.array([[1.0], [2.0], [6.0]]))
        >>> found.var(correction=1).tolist()
        [7.0]
        """
        correction = check_correction(correction, "var")
        if not self.count > correction:
            raise ArgumentError(
                f"var: the count is {self.count:g}, expected more than the correction {correction}. "
                "Merge more batches first."
            )
        variance: Array = equations.variance(self.m2, self.count, correction)
        return variance


class Context(NamedTuple):
    """What the backward pass needs of a forward pass.

    `batch_norm` returns it, and `batch_norm_backward` and `gradient_paths` take it. It holds x itself, a few float64
    per channel, and no copy of x. Two contexts are equal only if they are the same object.

    Attributes
    ----------
    x : ndarray
        The caller's array, not a copy. It must not change before the backward pass.
    statistics : ndarray of float64
        mean, var, gamma and beta, one row each. A parameter that was not given has a row of zeros.
    weights : ndarray of float64 or None
        The weights of the mask, in the order in which the kernels read them. None if all are 1.
    count : float
        m, the sum of the weights. It is infinite for given statistics.
    saved : ndarray or None
        With a residual and an activation, y (relu, leaky_relu) or the residual (silu): the caller's array, not a copy.
    overwritten : bool
        Whether y was written over x, so that there is no gradient.
    plan : Plan
        What follows from shapes, dtypes and options: channel axes, eps, correction and activation.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> y, context = xhat.batch_norm(np.array([[1.0], [2.0], [6.0]]))
    >>> context
    Context(x (3, 1) float64, axis (1,), m 3)
    >>> context.mean.tolist(), context.moments.m2.tolist()
    ([3.0], [14.0])
    """

    x: Array
    statistics: Array
    weights: Array | None
    count: float  # type: ignore[assignment]  # the number m, not a tuple's method
    saved: Array | None
    overwritten: bool
    plan: Plan

    @property
    def mean(self) -> Array:
        """The mean mu that was subtracted, in float64 and the shape of the channels."""
        mean: Array = self.statistics[0]
        return mean

    @property
    def var(self) -> Array:
        """The variance ``m2 / (m - correction)``, or the given one, in float64 and the shape of the channels."""
        var: Array = self.statistics[1]
        return var

    @property
    def gamma(self) -> Array | None:
        """A copy of gamma in float64; None if gamma was not given."""
        return None if self.plan.parameter_dtypes[0] is None else self.statistics[2]

    @property
    def beta(self) -> Array | None:
        """A copy of beta in float64; None if beta was not given."""
        return None if self.plan.parameter_dtypes[1] is None else self.statistics[3]

    @property
    def moments(self) -> Moments:
        """The moments of the batch, for example to update running statistics."""
        return Moments(self.count, self.mean, self.var * (self.count - self.plan.options.correction))

    # By identity, as of any object: arrays do not compare as a whole.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"Context(x {self.x.shape} {self.x.dtype}, axis {self.plan.axes}, m {self.count:g})"


def check_backward(dy: Any, context: Any, operation: str) -> Array:
    """dy as an array of x's shape and dtype. Raises ContextError where the context has no gradient, or no longer."""
    if not isinstance(context, Context):
        raise ContextError(
            f"{operation}: context is {type(context).__name__}, expected the context that batch_norm returned "
            "(y, context = xhat.batch_norm(...))."
        )
    try:
        _check_fields(context, operation)
    except Exception as error:
        raise changed(operation, error) from None
    if type(dy) is not np.ndarray:
        dy = plain_array(dy, operation, "dy")
    if dy.shape != context.x.shape or dy.dtype != context.x.dtype:
        check_like_x(operation, "dy", (dy.shape, dy.dtype), context.x.shape, context.x.dtype)
    gradient: Array = dy
    return gradient


def changed(operation: str, error: Exception) -> Exception:
    """What is raised where a context's fields do not fit each other; an error for another reason as it is."""
    if isinstance(error, XhatError) or not isinstance(error, _CHANGED):
        return error
    return ContextError(
        f"{operation}: the context is not as the forward pass made it ({error}). Leave its fields and its plan as "
        "they are."
    )


def _check_fields(context: Context, operation: str) -> None:
    if context.overwritten:
        raise ContextError(
            f"{operation}: the forward pass wrote y over x, and the gradient needs x. Give batch_norm another out."
        )
    # The caller may have changed the shape of these arrays in place: the plan's view does not walk that one.
    for name, array in (("x", context.x), ("the residual or y", context.saved)):
        if array is not None and array.shape != context.plan.shape:
            raise ContextError(
                f"{operation}: {name} has shape {shown(array.shape)}, and had {shown(context.plan.shape)} in the "
                "forward pass. Give it that shape again; reshape(...) makes a view, and leaves the array as it is."
            )
    if not _as_made(context):
        raise ContextError(
            f"{operation}: the context's arrays have other shapes or dtypes than in the forward pass. Leave them as "
            "they are, and change copies."
        )


def _as_made(c: Context) -> bool:
    """Whether the arrays are what the kernels take them for: memory is read by the shapes and dtype of the plan."""
    x, statistics, weights, count, saved, _, plan = c
    size = x.itemsize
    return (
        size == ITEM_SIZES[plan.dtype]
        and x.dtype.kind in "fV"  # V: bfloat16
        and type(count) in _NUMBERS
        and statistics.shape == plan.statistics_shape
        and statistics.itemsize == 8
        and statistics.flags.c_contiguous
        and (
            not plan.activated_residual
            if saved is None
            else plan.activated_residual and saved.itemsize == size
        )
        and (weights is None or _are_weights(weights, plan))
    )


_NUMBERS = (float, int, np.float64)


def _are_weights(weights: Array, plan: Plan) -> bool:
    outer, _, inner = plan.view.shape
    return weights.shape == (outer * inner,) and weights.itemsize == 8 and weights.flags.c_contiguous


def results_for(out: Any, dy: Array, c: Context, operation: str) -> tuple[Array, Array | None]:
    """Where dx goes and, behind a residual, dresidual. Raises OutputError."""
    if out is None:
        return np.empty_like(c.x), np.empty_like(c.x) if c.plan.residual else None
    pair = out if isinstance(out, tuple) else (out, None)
    if len(pair) != 2:
        raise OutputError(
            f"{operation}: out has {len(pair)} arrays, expected dx, or the pair (dx, dresidual)."
        )
    if pair[1] is not None and not c.plan.residual:
        raise OutputError(
            f"{operation}: out has a place for dresidual, expected dx alone: there was no residual."
        )
    inputs = {"dy": dy, "x": c.x, "the context's statistics": c.statistics} | (
        {} if c.saved is None else {"the residual or y": c.saved}
    )
    dx = np.empty_like(c.x) if pair[0] is None else check_output(pair[0], operation, "out", c.x, dy, inputs)
    if pair[1] is None:
        return dx, np.empty_like(c.x) if c.plan.residual else None
    return dx, check_output(pair[1], operation, "out[1]", c.x, None, {**inputs, "out[0]": dx})


def _before_activation(c: Context, rstd: Array, per_channel: Callable[[Array | None, float], Any]) -> Array:
    """pre without a residual, by the kernels' operations in their arithmetic, so that relu has the forward's sides."""
    mu, scale = per_channel(c.mean, 0.0), per_channel(c.gamma, 1.0) * rstd
    beta = per_channel(c.beta, 0.0) + 0 * rstd
    exact: Array = equations.normalize(c.x.astype(np.float64), mu, 1.0, scale, beta)
    if c.x.dtype == np.float64:
        return exact
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        hi = mu.astype(np.float32)
        lo, narrow = (mu - hi).astype(np.float32), scale.astype(np.float32)
        pre = equations.normalize(c.x.astype(np.float32) - hi, lo, 1, narrow, beta.astype(np.float32))
    fits = np.abs(beta) <= 1e30  # as `fits_float` of the kernels
    for value in (mu, scale):
        fits &= (value == 0) | ((np.abs(value) >= 1e-30) & (np.abs(value) <= 1e30))
    return np.where(fits & (abs(c.plan.options.slope) <= 1e30), pre, exact)


def gradient_paths(dy: Any, context: Context) -> Paths:
    """Split the gradient with respect to x into its three paths.

    ::

        g        =  dy act'(pre)
        direct   =  gamma rstd g
        mean     = -gamma rstd w sum(g) / m
        variance = -gamma rstd w xhat sum(g xhat) / (m - correction)

    Parameters
    ----------
    dy : array_like
        The gradient with respect to y, in the shape and dtype of x.
    context : Context
        The context that the forward pass returned.

    Returns
    -------
    Paths
        ``direct``, ``mean`` and ``variance``, in the shape of x and in float64. They sum to dx.

    Raises
    ------
    ContextError
        If the context was not returned by a forward pass, or if x was overwritten.
    ShapeError
        If dy does not have the shape of x.
    DtypeError
        If dy does not have the dtype of x.

    See Also
    --------
    batch_norm_backward : The sum of the three, in the dtype of x.
    xhat.lens.path_summary : How much of the gradient each path carries.

    Examples
    --------
    A constant gradient is what the mean takes away:

    >>> import numpy as np
    >>> import xhat
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, context = xhat.batch_norm(x)
    >>> paths = xhat.gradient_paths(np.ones_like(x), context)
    >>> paths.direct.round(4).ravel().tolist()
    [0.4629, 0.4629, 0.4629]
    >>> np.allclose(paths.direct + paths.mean, 0)
    True
    """
    dy = check_backward(dy, context, "gradient_paths")
    try:
        return _paths(dy, context)
    except Exception as error:
        raise changed("gradient_paths", error) from None


def _paths(dy: Array, c: Context) -> Paths:
    plan, options = c.plan, c.plan.options
    if not c.x.size:
        return Paths(np.zeros(c.x.shape), np.zeros(c.x.shape), np.zeros(c.x.shape))
    others = tuple(a for a in range(c.x.ndim) if a not in plan.axes)
    shape = [n if a in plan.axes else 1 for a, n in enumerate(c.x.shape)]

    def per_channel(value: Array | None, default: float) -> Any:
        return default if value is None else value.reshape(shape)

    gamma, mu = per_channel(c.gamma, 1.0), per_channel(c.mean, 0.0)
    rstd = equations.reciprocal_std(per_channel(c.var, 1.0), options.eps, np.sqrt)
    xhat = equations.standardize(c.x.astype(np.float64), mu, rstd)
    g = dy.astype(np.float64)
    if options.activation is not None:
        if c.saved is None:
            pre = _before_activation(c, rstd, per_channel)
        else:
            pre = equations.normalize(c.x.astype(np.float64), mu, rstd, gamma, per_channel(c.beta, 0.0))
            pre = c.saved.astype(np.float64) + (0 if options.activation == "leaky_relu" else pre)
        slope = equations.activation_slope(pre, options.activation, options.slope, np)
        g = np.where(g == 0, g, g * slope)  # padding: dy = 0 gives 0 even where the slope is NaN
    w: Any = 1.0
    if c.weights is not None:
        w = as_mask(c.weights, plan)
        xhat = np.where((w == 0) & (g == 0), 0.0, xhat)  # padding: x may be NaN there
    if math.isinf(c.count):
        xhat = np.zeros_like(xhat)  # no path leads through given statistics, whatever x is
    total = partial(np.sum, axis=others, keepdims=True)
    if not math.isinf(c.count):
        xhat = xhat - total(w * xhat) / c.count  # what rounding has left of the mean
    sums = equations.gradient_sums(g, xhat, total)
    terms = equations.paths(
        g, xhat, *sums, gamma=gamma, rstd=rstd, m=c.count, correction=options.correction, w=w
    )
    return Paths(*(np.broadcast_to(term, c.x.shape).copy() for term in terms))
