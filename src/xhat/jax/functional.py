"""The public functions: they check what comes in, and put moments, xhat and activation together.

No state lives here, and no derivative.
"""

from typing import Any, Never

import jax
import jax.numpy as jnp
from jax import Array

from xhat import equations
from xhat.checks import refuse_options, shown
from xhat.errors import ArgumentError, ShapeError
from xhat.jax import inputs
from xhat.jax.derivatives import centred, standardized
from xhat.jax.inputs import Weighed, arrays
from xhat.jax.moments import Batch, Moments, merged
from xhat.plan import Options, check_options

__all__ = ["batch_norm", "by_batch", "by_statistics", "merge", "moments", "normalize", "on_channels"]

Axis = int | tuple[int, ...]
_LAYERS = "xhat.flax and xhat.equinox have layers with running statistics."
_REMEDIES = {
    "training": "batch_norm normalizes by the batch's own statistics, normalize by given ones.",
    "use_running_average": "batch_norm normalizes by the batch's own statistics, normalize by given ones.",
    "momentum": _LAYERS,
    "epsilon": "It is called eps here.",
    "scale": "It is called gamma here.",
    "weight": "It is called gamma here.",
    "bias": "It is called beta here.",
    "offset": "It is called beta here.",
}


def batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = -1, eps: float = 1e-5, correction: int = 0,
    mask: Any = None, axis_name: Any = None, axis_index_groups: Any = None, activation: Any = None,
    residual: Any = None, **unknown: Never,
) -> tuple[Array, Moments]:  # fmt: skip
    """Normalize a batch by its own mean and variance.

    ::

        m   = sum w
        mu  = sum w x / m
        var = sum w (x - mu)^2 / (m - correction)
        y   = act(gamma (x - mu) / sqrt(var + eps) + beta [+ residual])

    Parameters
    ----------
    x : array_like
        The batch: any shape, float64, float32, float16 or bfloat16.
    gamma, beta : array_like, optional
        Scale and shift, in the shape of the channels and in the dtype of x or a wider one. They default to 1 and 0.
    axis : int or tuple of int, default -1
        The channel axis, or several axes that are the channels together.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    correction : {0, 1}, default 0
        0 to divide by m, 1 to divide by m - 1.
    mask : array_like, optional
        Bool, or weights w of at least 0. It broadcasts to x and has size 1 along the channels. It weighs the
        statistics; every element of x is normalized. Padding, where w is 0, may hold anything.
    axis_name : hashable or tuple of hashable, optional
        The name, or names, of the devices' axis (shard_map, pmap, vmap) over which the batch is spread. Their moments
        are merged in one exchange.
    axis_index_groups : sequence of sequences of int, optional
        The groups of devices whose parts are one batch.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        The function ``act``.
    residual : array_like, optional
        Added before the activation, in the shape and dtype of x.

    Returns
    -------
    y : jax.Array
        The result, in the shape and dtype of x. An empty batch gives an empty y and count 0.
    moments : Moments
        The moments of the batch, in float32; in float64 for float64.

    Raises
    ------
    ShapeError
        If an array does not fit x, or if x has no such axis.
    DtypeError
        If an array has a dtype that is not accepted.
    ArgumentError
        If eps, correction, activation or a weight has no valid value.
    OptionError
        If the function does not have an option of this name.
    DegenerateBatchError
        If m <= correction, or if there is a single value per channel.

    See Also
    --------
    normalize : The same with given statistics, for evaluation.

    Notes
    -----
    The derivative is the closed form, of any order, with respect to all arrays.

    Errors are raised while the function is traced as well. Under jit, where values can't be looked at, a mask that
    leaves no variance gives NaN.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from xhat.jax import batch_norm
    >>> y, found = jax.jit(batch_norm)(np.array([[1.0], [2.0], [6.0]], np.float32))
    >>> print(np.asarray(y).round(3).ravel())
    [-0.926 -0.463  1.389]
    >>> running_mean = 0.9 * np.zeros(1) + 0.1 * np.asarray(found.mean)
    >>> print(running_mean.round(3))
    [0.3]
    """
    if unknown:
        refuse_options("batch_norm", unknown, _REMEDIES)
    o = check_options("batch_norm", eps, correction, activation)
    x, gamma, beta, residual = arrays("batch_norm", x=x, gamma=gamma, beta=beta, residual=residual)
    axes = inputs.check("batch_norm", axis, x, None, None, gamma, beta, residual, part=True)
    mask = inputs.mask_for(mask, "batch_norm", x, axes)
    batch = inputs.batch_of("batch_norm", axes, x.ndim, axis_name, axis_index_groups)
    weighed = inputs.weighed(x, mask, axes, inputs.precision(x, gamma, beta))
    inputs.check_batch("batch_norm", x, mask, batch, o.correction)
    y, found = by_batch(weighed, batch, gamma, beta, residual, o)
    return y.astype(x.dtype), found


def normalize(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = -1, eps: float = 1e-5,
    residual: Any = None, activation: Any = None, **unknown: Never,
) -> Array:  # fmt: skip
    """Normalize an array by a given mean and variance, as in evaluation.

    ::

        y = act(gamma (x - mean) / sqrt(var + eps) + beta [+ residual])

    Parameters
    ----------
    x : array_like
        The batch: any shape, float64, float32, float16 or bfloat16.
    mean, var : array_like
        The statistics, in the shape of the channels and any of the four dtypes. var must be at least 0. The mean may
        be a pair (high, low) of arrays whose sum it is, such as `Moments` have.
    gamma, beta : array_like, optional
        Scale and shift, in the shape of the channels and in the dtype of x or a wider one. They default to 1 and 0.
    axis : int or tuple of int, default -1
        The channel axis, or several axes that are the channels together.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    residual : array_like, optional
        Added before the activation, in the shape and dtype of x.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        The function ``act``.

    Returns
    -------
    jax.Array
        The result y, in the shape and dtype of x.

    Raises
    ------
    ShapeError
        If an array does not fit x, or if x has no such axis.
    DtypeError
        If an array has a dtype that is not accepted.
    ArgumentError
        If mean or var is None, if a variance is negative where it can be looked at, or if eps or activation has no
        valid value.
    OptionError
        If the function does not have an option of this name.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from xhat.jax import normalize
    >>> x = jnp.array([[1.0, 4.0], [3.0, 8.0]])
    >>> y = jax.jit(normalize)(x, jnp.array([1.0, 4.0]), jnp.array([4.0, 16.0]))
    >>> np.asarray(y).round(3).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if unknown:
        refuse_options("normalize", unknown, _REMEDIES)
    if mean is None or var is None:
        raise ArgumentError("normalize: mean and var are needed, got None. batch_norm takes the batch's own.")
    o = check_options("normalize", eps, 0, activation)
    mean, low = mean if isinstance(mean, tuple) and len(mean) == 2 else (mean, None)
    x, mean, var, gamma, beta, residual = arrays(
        "normalize", x=x, mean=mean, var=var, gamma=gamma, beta=beta, residual=residual
    )
    axes = inputs.check("normalize", axis, x, mean, var, gamma, beta, residual)
    if low is not None:
        (low,) = arrays("normalize", mean=low)
        inputs.check("normalize", axis, x, low, var)
    y = by_statistics(
        x.astype(inputs.precision(x, gamma, beta)), axes, (mean, low), var, gamma, beta, residual, o
    )
    return y.astype(x.dtype)


def moments(
    x: Any, *, axis: Axis = -1, mask: Any = None, axis_name: Any = None, axis_index_groups: Any = None,
    **unknown: Never,
) -> Moments:  # fmt: skip
    """Compute count, mean and sum of squared deviations of each channel.

    ::

        m = sum w     mu = sum w x / m     m2 = sum w (x - mu)^2

    Parameters
    ----------
    x : array_like
        The batch: any shape, float64, float32, float16 or bfloat16.
    axis : int or tuple of int, default -1
        The channel axis, or several axes that are the channels together.
    mask : array_like, optional
        Bool, or weights w of at least 0. It broadcasts to x and has size 1 along the channels.
    axis_name : hashable or tuple of hashable, optional
        The name, or names, of the devices' axis over which the batch is spread, as for `batch_norm`.
    axis_index_groups : sequence of sequences of int, optional
        The groups of devices whose parts are one batch.

    Returns
    -------
    Moments
        The moments. An empty batch, or one without weights, has count 0.

    Raises
    ------
    ShapeError
        If x has no such axis, or if the mask does not broadcast.
    DtypeError
        If x or the mask has a dtype that is not accepted.
    ArgumentError
        If a weight is negative or not finite.
    OptionError
        If the function does not have an option of this name.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from xhat.jax import moments
    >>> x = jnp.array([[1.0], [2.0], [jnp.nan]])
    >>> mask = jnp.array([[True], [True], [False]])
    >>> jax.jit(moments)(x, mask=mask).mean.tolist()
    [1.5]
    """
    if unknown:
        refuse_options("moments", unknown, _REMEDIES)
    (x,) = arrays("moments", x=x)
    axes = inputs.check("moments", axis, x, part=True)
    mask = inputs.mask_for(mask, "moments", x, axes)
    batch = inputs.batch_of("moments", axes, x.ndim, axis_name, axis_index_groups)
    weighed = inputs.weighed(x, mask, axes, inputs.precision(x))
    return on_channels(standardized(batch, 1.0, 0, weighed.x, weighed.w)[1], batch)


def merge(a: Moments, *others: Moments) -> Moments:
    """Merge the moments of several batches.

    ::

        m  = ma + mb
        mu = mu_a + delta mb / m                   delta = mu_b - mu_a
        m2 = m2_a + m2_b + delta^2 ma mb / m

    Parameters
    ----------
    a, *others : Moments
        The moments of batches, of the same channels.

    Returns
    -------
    Moments
        The moments of all batches together.

    Raises
    ------
    ArgumentError
        If an argument is no `Moments`.
    ShapeError
        If channels differ.

    References
    ----------
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from xhat.jax import merge, moments
    >>> def both_of(a, b):
    ...     return merge(moments(a), moments(b))
    >>> both = jax.jit(both_of)(jnp.array([[1.0]]), jnp.array([[2.0], [6.0]]))
    >>> float(both.count), both.mean.tolist(), both.m2.tolist()
    (3.0, [3.0], [14.0])
    """
    for other in (a, *others):
        if not isinstance(other, Moments):
            raise ArgumentError(f"merge: got {type(other).__name__}, expected Moments: merge(a, b, c).")
        if other.high.shape != a.high.shape:
            raise ShapeError(
                f"merge: moments have channels {shown(other.high.shape)}, "
                f"expected {shown(a.high.shape)} like the first."
            )
    parts = [[jnp.broadcast_to(v, m.m2.shape) for v in m] for m in (a, *others)]
    together = merged(Moments(*(jnp.stack(v) for v in zip(*parts, strict=True))))
    scalar = all(m.count.ndim == 0 for m in (a, *others))
    return together._replace(count=sum(m.count for m in others) + a.count) if scalar else together


# ------------------------------------------------------------------------------------- for the layers: no checks


def by_batch(
    t: Weighed, batch: Batch, gamma: Any, beta: Any, residual: Any, o: Options
) -> tuple[Array, Moments]:
    """y in the dtype of t.x, with the batch's own statistics, and these on the channels' shape."""
    gamma, beta = (_column(p, t.x, batch) for p in (gamma, beta))
    xhat, found = standardized(batch, o.eps, o.correction, t.x, t.w)
    pre = centred(batch, xhat if gamma is None else gamma * xhat, t.w, found.count)
    pre = pre if beta is None else pre + beta
    y = _finished(pre, residual, o)
    if t.padding is not None:
        y = jnp.where(t.padding, jnp.nan, y)
    return y, on_channels(found, batch)


def by_statistics(
    x: Array, axes: tuple[int, ...], mean: tuple[Array, Array | None], var: Array, gamma: Any, beta: Any, residual: Any,
    o: Options,
) -> Array:  # fmt: skip
    """y in x's dtype, with given statistics; mean is a pair whose sum it is."""
    batch = Batch(tuple(a for a in range(x.ndim) if a not in axes))
    high, low, wide, gamma, beta = (_column(p, x, batch) for p in (*mean, var, gamma, beta))
    if low is None:
        low = jnp.zeros_like(high)
    rstd = equations.reciprocal_std(wide, o.eps, jnp.sqrt)
    pre = equations.normalize(x - high, low, rstd, 1 if gamma is None else gamma, 0 if beta is None else beta)
    return _finished(pre, residual, o)


def _column(vector: Array | None, x: Array, batch: Batch) -> Any:
    """A number per channel, broadcast against x; None stays None."""
    if vector is None:
        return None
    return vector.astype(x.dtype).reshape([1 if a in batch.axes else n for a, n in enumerate(x.shape)])


def on_channels(found: Moments, batch: Batch) -> Moments:
    """Moments of the channels' shape; the count is one number, unless a mask tells channels apart."""
    rest = (v.squeeze(batch.axes) for v in found[1:])
    return Moments(
        found.count.squeeze(batch.axes) if found.count.size > 1 else found.count.reshape(()), *rest
    )


def _finished(pre: Array, residual: Array | None, o: Options) -> Array:
    return activated(pre if residual is None else pre + residual.astype(pre.dtype), o)


def activated(pre: Array, o: Options) -> Array:
    """act(pre), as JAX defines it: its derivatives are finite at both ends, and that of a ReLU at 0 is the left one."""
    if o.activation is None:
        return pre
    if o.activation == "silu":
        return jax.nn.silu(pre)
    if o.activation == "leaky_relu":
        return jnp.where(pre <= 0, o.slope * pre, pre) if o.slope else jax.nn.relu(pre)
    raise KeyError(o.activation)
