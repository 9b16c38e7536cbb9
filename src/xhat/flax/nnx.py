"""`flax.nnx.BatchNorm` with exact statistics, masks and gradients. Only what a call does is replaced."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype
from jax import Array

from xhat.flax.layer import normalized
from xhat.jax.moments import followed

__all__ = ["BatchNorm"]


class BatchNorm(nnx.BatchNorm):
    """Batch normalization for Flax NNX: `flax.nnx.BatchNorm` with exact results, statistics and gradients.

    The constructor, the state and the call are those of Flax's layer::

        y = scale (x - mu) / sqrt(var + epsilon) + bias

        training     mu and var = m2 / m of the batch, and then
                     mean = momentum mean + (1 - momentum) mu
                     var  = momentum var + (1 - momentum) m2 / m
        evaluation   mean and var of the layer

    Parameters
    ----------
    num_features : int
        The number of channels.
    use_running_average : bool, default False
        Whether to use the running statistics.
    axis : int or tuple of int, default -1
        The channel axis, or several axes that are the channels together.
    momentum : float, default 0.99
        The weight of the old running statistics.
    epsilon : float, default 1e-5
        Added to the variance inside the square root.
    use_bias, use_scale : bool, default True
        Whether the layer has a bias and a scale.
    axis_name, axis_index_groups : optional
        The devices over which a batch is spread.
    use_fast_variance : bool
        Accepted, and means nothing.
    dtype, param_dtype, bias_init, scale_init, rngs, ... : optional
        As for `flax.nnx.BatchNorm`.

    Raises
    ------
    ShapeError, DtypeError, ArgumentError, DegenerateBatchError
        For what can't be normalized: shapes that do not fit, one value per channel.

    Notes
    -----
    A mask is bool or weights that broadcast to x; on many devices they are counted over all of them. A batch, or a
    channel, without a value leaves its running statistics as they are, which stay in their own dtype. Complex x is
    left to Flax.

    Examples
    --------
    >>> import numpy as np
    >>> from flax import nnx
    >>> from xhat.flax.nnx import BatchNorm
    >>> layer = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> x = np.array([[1], [2], [6], [0]], np.float32)
    >>> mask = np.array([[1], [1], [1], [0]], bool)
    >>> @nnx.jit
    ... def call(layer, x, mask):
    ...     return layer(x, mask=mask)
    >>> y = call(layer, x, mask)
    >>> print(np.asarray(y).round(3).ravel()[:3])
    [-0.926 -0.463  1.389]
    >>> print(np.asarray(layer.mean[...]).round(3))
    [0.3]
    """

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Array:
        """Normalize a batch, and move the running statistics in training.

        Parameters
        ----------
        x : array_like
            The batch.
        use_running_average : bool, optional
            Whether to use the running statistics; by default as the constructor was told.
        mask : array_like, optional
            Bool or weights that broadcast to x.

        Returns
        -------
        jax.Array
            The result y, in the dtype that Flax's layer gives it.
        """
        by_running = self.use_running_average if use_running_average is None else use_running_average
        if by_running is None or jnp.iscomplexobj(x):  # Flax has the sentence, and the formula
            theirs: Array = super().__call__(x, use_running_average, mask=mask)
            return theirs
        scale, bias = (None if p is None else p[...] for p in (self.scale, self.bias))
        mean, var = self.mean[...], self.var[...]
        x, _, _, scale, bias = self.promote_dtype((x, mean, var, scale, bias), dtype=self.dtype)
        y, found = normalized(self, x, scale, bias, mean, var, mask, by_running=bool(by_running))
        if found is not None:
            moved = followed(mean, var, found, self.momentum)
            self.mean[...], self.var[...] = map(jax.lax.stop_gradient, moved)
        arrays = [a for a in (x, scale, bias) if a is not None]
        return y.astype(canonicalize_dtype(*arrays, dtype=self.dtype))
