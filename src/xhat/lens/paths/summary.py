"""How much of the gradient each path carries, and how much of it batch normalization takes out, per channel.

The backward pass is nearly a projection. Of what comes in, g = gamma rstd dy, it removes the mean and the
component along xhat; of the latter eps / (var + eps) stays, for every correction:

    sum(dx) = 0        sum(dx xhat) = eps rstd^2 sum(g xhat)

No path is derived here: the three paths come from `xhat.equations` by way of `xhat.ops`.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xhat import equations
from xhat.lens.paths.graph import by_channel
from xhat.ops import gradient_paths

__all__ = ["PathSummary", "path_summary", "summarize"]

Array = NDArray[np.float64]


class PathSummary(NamedTuple):
    """Per channel, of the incoming gradient g = gamma rstd dy (the direct path):

    direct, mean, variance, dx    the L2 norms of the three paths and of their sum
    along_one, along_xhat         the shares of g's energy in the direction of 1 and of xhat
    by_mean, by_variance, kept    the shares of g's energy that the mean path takes out, that the variance
                                  path takes out after it, and that is left in dx; they sum to 1
    cancellation                  (direct + mean + variance) / dx: 1 where nothing cancels, infinite where all does
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
    """The paths of one backward pass in numbers: dy and the context of its forward, as in `gradient_paths`.

    Every field has the shape of the channels. Raises what `xhat.gradient_paths` raises.
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
    """The same from the three paths, which broadcast to xhat (channels, values); the fields are (channels,)."""
    paths = equations.Paths(*(np.broadcast_to(path, xhat.shape) for path in paths))
    with np.errstate(all="ignore"):
        direct, mean, variance = (_norm(path) for path in paths)
        after_mean = _norm(paths.direct + paths.mean)
        dx = _norm(paths.direct + paths.mean + paths.variance)
        g, toward_xhat = (
            _unit(paths.direct, direct),
            _unit(xhat, _norm(xhat)),
        )  # so that squares can't overflow
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
    """Each row at length 1, or 0 where it is 0."""
    return np.asarray(array / np.where(length > 0, length, 1)[:, None])


def _share(before: Array, after: Array, whole: Array) -> Array:
    """(before^2 - after^2) / whole^2, or 0 where nothing came in."""
    some = np.where(whole == 0, 1.0, whole)
    return np.asarray((before / some) ** 2 - (after / some) ** 2)
