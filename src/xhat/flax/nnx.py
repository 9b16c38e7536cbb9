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
    """`flax.nnx.BatchNorm`: the same constructor, state and call; y, statistics and gradients are exact.

        training     y = scale (x - mu) / sqrt(var + epsilon) + bias, with the batch's own mu and var = m2 / m;
                     mean = momentum mean + (1 - momentum) mu     var = momentum var + (1 - momentum) m2 / m
        evaluation   the same with mean and var

    mask: bool or weights that broadcast to x; on many devices they are counted over all of them. A batch, or a
    channel, without a value leaves its running statistics as they are, which stay in their own dtype.
    use_fast_variance is accepted and means nothing. Complex x is left to Flax.

    Raises classes of xhat.errors for what can't be normalized: shapes that do not fit, one value per channel.

    >>> layer = BatchNorm(64, rngs=nnx.Rngs(0))
    >>> y = layer(x, mask=jnp.arange(56)[:, None] < 40)
    """

    def __call__(self, x: Any, use_running_average: bool | None = None, *, mask: Any = None) -> Array:
        """y, in the dtype that Flax's layer gives it."""
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
