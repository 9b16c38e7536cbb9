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
    """Batch normalization for Flax Linen: `flax.linen.BatchNorm` with exact results, statistics and gradients.

    The attributes, the collections and the call are those of Flax's layer::

        y = scale (x - mu) / sqrt(var + epsilon) + bias

        training     mu and var = m2 / m of the batch, and then
                     mean = momentum mean + (1 - momentum) mu
                     var  = momentum var + (1 - momentum) m2 / m
        evaluation   mean and var of the collection batch_stats

    Parameters
    ----------
    use_running_average : bool, optional
        Whether to use the running statistics; here or in the call.
    axis : int or tuple of int, default -1
        The channel axis, or several axes that are the channels together.
    momentum : float, default 0.99
        The weight of the old running statistics.
    epsilon : float, default 1e-5
        Added to the variance inside the square root.
    dtype, param_dtype : dtype, optional
        The dtype of the result, and that of scale and bias.
    use_bias, use_scale : bool, default True
        Whether the layer has a bias and a scale.
    bias_init, scale_init : callable, optional
        How they are initialized: by default with zeros and ones.
    axis_name, axis_index_groups : optional
        The devices over which a batch is spread.
    use_fast_variance : bool
        Accepted, and means nothing.
    force_float32_reductions : bool, default True
        Whether running statistics start as float32 rather than in param_dtype.
    name : str, optional
        As for any module of Flax.

    Raises
    ------
    ShapeError, DtypeError, ArgumentError, DegenerateBatchError
        For what can't be normalized, but while a model is initialized.

    Notes
    -----
    A mask is bool or weights that broadcast to x; on many devices they are counted over all of them. A batch, or a
    channel, without a value leaves its running statistics as they are, which stay in their own dtype. Complex x is
    left to Flax.

    Examples
    --------
    >>> import jax
    >>> import numpy as np
    >>> from xhat.flax.linen import BatchNorm
    >>> layer = BatchNorm(use_running_average=False, momentum=0.9)
    >>> x = np.array([[1.0], [2.0], [6.0]], np.float32)
    >>> variables = jax.jit(layer.init)(jax.random.key(0), x)
    >>> @jax.jit
    ... def call(variables, x):
    ...     return layer.apply(variables, x, mutable=["batch_stats"])
    >>> y, moved = call(variables, x)
    >>> print(np.asarray(y).round(3).ravel())
    [-0.926 -0.463  1.389]
    >>> print(np.asarray(moved["batch_stats"]["mean"]).round(3))
    [0.3]
    """

    @linen.compact
    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Array:
        """Normalize a batch, and move the running statistics in training.

        Parameters
        ----------
        x : array_like
            The batch.
        use_running_average : bool, optional
            Whether to use the running statistics; here or as an attribute.
        mask : array_like, optional
            Bool or weights that broadcast to x.

        Returns
        -------
        jax.Array
            The result y, in the dtype that Flax's layer gives it.
        """
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
