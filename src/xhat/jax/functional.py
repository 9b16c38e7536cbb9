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
    """y = act(gamma (x - mu) / sqrt(var + eps) + beta [+ residual]), with the batch's own mu and var, and its moments.

        m = sum w     mu = sum w x / m     var = sum w (x - mu)^2 / (m - correction)

    x: any shape, float64, float32, float16 or bfloat16. gamma, beta: the channels' shape, x's dtype or wider
    (None: 1 and 0). axis: the channel axis, or a tuple of axes that are the channels together. mask: bool or
    non-negative weights w that broadcast to x with size 1 along the channels; it weighs the statistics, and every
    place of y is normalized. Padding, where w is 0, may hold anything. axis_name: the name, or names, of the devices'
    axis (shard_map, pmap, vmap) over which the batch is spread; their moments are merged in one exchange.
    axis_index_groups: the groups of devices whose parts are one batch. residual: as x, added before the activation.
    activation: None, "relu", ("leaky_relu", slope) or "silu".

    Returns y in x's dtype, and Moments (float32; float64 for float64). The derivative is the closed form, of any
    order, with respect to all arrays. An empty batch gives an empty y and count 0. Under jit, where values can't be
    looked at, a mask that leaves no variance gives NaN.

    Raises ShapeError, DtypeError, ArgumentError, DegenerateBatchError, while it is traced as well.

    >>> y, moments = batch_norm(x, gamma, beta)
    >>> running_mean = 0.9 * running_mean + 0.1 * moments.mean
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
    """y = act(gamma (x - mean) / sqrt(var + eps) + beta [+ residual]), with given statistics (evaluation).

    mean, var: the channels' shape, any of the four dtypes, var at least 0. mean may be a pair (high, low) of arrays
    whose sum it is, such as `Moments` have. The other arguments, the result and what is raised are those of
    `batch_norm`; so a negative var is refused where it can be looked at.
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
    """Count m = sum w, mean mu = sum w x / m and m2 = sum w (x - mu)^2 of each channel.

    The arguments are those of `batch_norm`. An empty batch, or one without weights, has count 0. Raises ShapeError,
    DtypeError, ArgumentError.
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
    """The moments of all batches together. Raises ArgumentError, and ShapeError where channels differ.

    >>> epoch = merge(moments(x[:16]), moments(x[16:]))
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
