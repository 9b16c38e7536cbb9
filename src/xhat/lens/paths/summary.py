"""The share of the gradient in each path, and the share that batch normalization removes, per channel.

The backward pass is nearly a projection. From the incoming gradient g = gamma rstd dy it removes the mean, and the
component along xhat except for the share eps / (var + eps), for every correction:

    sum(dx) = 0        sum(dx xhat) = eps rstd^2 sum(g xhat)

The paths themselves are computed by `xhat.ops`, with the formulas of `xhat.equations`.
"""

from __future__ import annotations  # ArrayLike keeps its name in signatures

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xhat import equations
from xhat.lens.paths.graph import by_channel
from xhat.ops import gradient_paths

__all__ = ["PathSummary", "path_summary", "summarize"]

Array = NDArray[np.float64]


class PathSummary(NamedTuple):
    """How much of the gradient each path carries, per channel.

    The incoming gradient is ``g = gamma rstd dy``, the direct path. Every field has the shape of the channels.

    Attributes
    ----------
    direct, mean, variance, dx : ndarray
        The L2 norms of the three paths and of their sum.
    along_one, along_xhat : ndarray
        The shares of the energy of g (its squared norm) along 1 and along xhat.
    by_mean, by_variance, kept : ndarray
        The shares of the energy of g that the mean path removes, that the variance path removes after it, and that
        remains in dx; they sum to 1.
    cancellation : ndarray
        ``(direct + mean + variance) / dx``: 1 without cancellation, infinite if dx is 0.
    """

    direct: Array
    mean: Array
    variance: Array
    dx: Array
    along_one: Array
    along_xhat: Array
    by_mean: Array
    by_variance: Array
    kept: Array
    cancellation: Array


def path_summary(dy: ArrayLike, context: Any) -> PathSummary:
    """Summarize how much of the gradient each path carries, for one backward pass.

    Parameters
    ----------
    dy : array_like
        The gradient with respect to y, in the shape and dtype of x.
    context : Context
        The context that `xhat.batch_norm` returned.

    Returns
    -------
    PathSummary
        The norms of the three paths, and the shares of the gradient that they remove, per channel.

    Raises
    ------
    ContextError, ShapeError, DtypeError
        As `xhat.gradient_paths` does.

    Examples
    --------
    A constant gradient is removed by the mean's path:

    >>> import numpy as np
    >>> import xhat
    >>> import xhat.lens
    >>> y, context = xhat.batch_norm(np.array([[1.0], [2.0], [6.0]]))
    >>> xhat.lens.path_summary(np.ones((3, 1)), context).by_mean.round(4).tolist()
    [1.0]
    """
    whole = gradient_paths(dy, context)  # first, since it checks the context
    x, axes = context.x, context.plan.axes
    paths = equations.Paths(*(by_channel(path, axes) for path in whole))
    mu, var = (np.asarray(moment, dtype=np.float64).reshape(-1, 1) for moment in (context.mean, context.var))
    rstd = equations.reciprocal_std(var, context.plan.options.eps, np.sqrt)
    xhat = equations.standardize(by_channel(x, axes).astype(np.float64), mu, rstd)
    channels = tuple(x.shape[a] for a in axes)
    return PathSummary(*(field.reshape(channels) for field in summarize(paths, xhat)))


def summarize(paths: equations.Paths, xhat: Array) -> PathSummary:
    """The summary of three paths that broadcast to xhat, of shape (channels, elements); the fields are (channels,)."""
    paths = equations.Paths(*(np.broadcast_to(path, xhat.shape) for path in paths))
    with np.errstate(all="ignore"):
        direct, mean, variance = (_norm(path) for path in paths)
        after_mean = _norm(paths.direct + paths.mean)
        dx = _norm(paths.direct + paths.mean + paths.variance)
        # Unit vectors, so that their squares can't overflow.
        g, toward_xhat = _unit(paths.direct, direct), _unit(xhat, _norm(xhat))
        by_mean = _share(direct, after_mean, direct)
        by_variance = _share(after_mean, dx, direct)
        sum_of_norms = direct + mean + variance
        cancellation = np.where(sum_of_norms == 0, 1.0, sum_of_norms / dx)
    return PathSummary(
        direct=direct,
        mean=mean,
        variance=variance,
        dx=dx,
        along_one=np.sum(g, axis=1) ** 2 / g.shape[1],
        along_xhat=np.sum(g * toward_xhat, axis=1) ** 2,
        by_mean=by_mean,
        by_variance=by_variance,
        kept=1 - by_mean - by_variance,
        cancellation=cancellation,
    )


def _norm(array: Array) -> Array:
    largest = np.max(np.abs(array), axis=1, initial=0.0, keepdims=True)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1.0)
    return np.asarray(np.linalg.norm(array / scale, axis=1) * scale[:, 0])


def _unit(array: Array, length: Array) -> Array:
    """Each row scaled to length 1; zero rows stay 0."""
    return np.asarray(array / np.where(length > 0, length, 1)[:, None])


def _share(before: Array, after: Array, whole: Array) -> Array:
    """(before^2 - after^2) / whole^2, or 0 if whole is 0."""
    some = np.where(whole == 0, 1.0, whole)
    return np.asarray((before / some) ** 2 - (after / some) ** 2)
