"""`flax.linen.BatchNorm` with exact statistics, masks and gradients. Only what a call does is replaced."""

from typing import Any

import jax.numpy as jnp
from flax import linen
from flax.linen.dtypes import canonicalize_dtype
from jax import Array

from xhat.flax.layer import normalized
from xhat.jax.moments import followed
from xhat.layout import channel_axes

__all__ = ["BatchNorm"]


class BatchNorm(linen.BatchNorm):
    """`flax.linen.BatchNorm`: the same attributes, collections and call; y, statistics and gradients are exact.

        training     y = scale (x - mu) / sqrt(var + epsilon) + bias, with the batch's own mu and var = m2 / m;
                     mean = momentum mean + (1 - momentum) mu     var = momentum var + (1 - momentum) m2 / m
        evaluation   the same with mean and var of the collection batch_stats

    mask: bool or weights that broadcast to x; on many devices they are counted over all of them. A batch, or a
    channel, without a value leaves its running statistics as they are, which stay in their own dtype.
    use_fast_variance is accepted and means nothing. Complex x is left to Flax.

    Raises classes of xhat.errors for what can't be normalized, but while a model is initialized.

    >>> layer = BatchNorm(use_running_average=False)
    >>> y, moved = layer.apply(layer.init(key, x), x, mutable=["batch_stats"])
    """

    @linen.compact
    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Array:
        """y, in the dtype that Flax's layer gives it."""
        if jnp.iscomplexobj(x):
            theirs: Array = super().__call__(x, use_running_average, mask=mask)
            return theirs
        by_running = linen.merge_param("use_running_average", self.use_running_average, use_running_average)
        x = jnp.asarray(x)
        axis: Any = self.axis  # a tuple of axes, too
        shape = [x.shape[a] for a in channel_axes(x.ndim, axis, "BatchNorm")]
        dtype = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, shape, self.param_dtype) if self.use_bias else None
        starting = self.is_initializing()
        y, found = normalized(
            self,
            x,
            scale,
            bias,
            mean.value,
            var.value,
            mask,
            by_running=by_running,
            across_devices=not starting,
        )
        if found is not None and not starting:
            mean.value, var.value = followed(mean.value, var.value, found, self.momentum)
        arrays = [a for a in (x, scale, bias) if a is not None]
        return y.astype(canonicalize_dtype(*arrays, dtype=self.dtype))
