"""`equinox.nn.BatchNorm` with exact statistics and gradients. Only what a call does is replaced."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from xhat import equations
from xhat.jax import inputs
from xhat.jax.derivatives import standardized
from xhat.jax.functional import by_batch, by_statistics, on_channels
from xhat.jax.moments import Batch, followed
from xhat.plan import Options, check_options

__all__ = ["BatchNorm"]

OPERATION = "BatchNorm"


class BatchNorm(eqx.nn.BatchNorm):
    """Batch normalization for Equinox: `equinox.nn.BatchNorm` with exact results, statistics and gradients.

    The constructor, the state and the call are those of Equinox's layer::

        y = weight (x - mu) / sqrt(var + eps) + bias

        training, mode "batch"   mu and var = m2 / m of the batch
        training, mode "ema"     the running statistics, which this batch has moved
        evaluation               the running statistics

    Parameters
    ----------
    input_size : int
        The number of channels, the first axis of the x of one sample.
    axis_name : hashable or sequence of hashable
        The name of the axis of the vmap or pmap that the layer stands in.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    channelwise_affine : bool, default True
        Whether the layer has a weight and a bias.
    momentum : float, default 0.99
        The weight of the old running statistics.
    inference : bool, default False
        Whether the layer evaluates.
    dtype : dtype, optional
        The dtype of weight, bias and running statistics.
    mode : {"batch", "ema"}
        What training normalizes by.

    Raises
    ------
    ShapeError
        If shapes do not fit.

    Notes
    -----
    The running variance of mode "batch" starts at 1. Equinox takes the bias out as if it started at 0: after one batch
    of momentum 0.99 it evaluates by var + 99. Here it is taken out from 1. The state is the same; evaluation agrees
    with Equinox's as the number of batches grows.

    One value per channel gives bias, as it does there. Complex x is left to Equinox.

    Examples
    --------
    >>> import equinox as eqx
    >>> import jax
    >>> import numpy as np
    >>> from xhat.equinox import BatchNorm
    >>> make = eqx.nn.make_with_state(BatchNorm)
    >>> layer, state = make(1, axis_name="batch", mode="batch")
    >>> xs = np.array([[1.0], [2.0], [6.0]], np.float32)
    >>> mapped = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    >>> ys, state = jax.jit(mapped)(xs, state)
    >>> print(np.asarray(ys).round(3).ravel())
    [-0.926 -0.463  1.389]
    """

    def __call__(
        self, x: Any, state: eqx.nn.State, *, key: Any = None, inference: bool | None = None
    ) -> tuple[Array, eqx.nn.State]:
        """Normalize a sample by its batch, the axis that a vmap or pmap maps.

        Parameters
        ----------
        x : array_like
            One sample, of shape (input_size, ...).
        state : equinox.nn.State
            The state of the model.
        key : optional
            Accepted, and not used.
        inference : bool, optional
            Whether to evaluate; by default as the layer's attribute.

        Returns
        -------
        y : jax.Array
            The result, in the shape of x.
        state : equinox.nn.State
            The state after this batch.
        """
        x = jnp.asarray(x)
        if jnp.iscomplexobj(x):
            theirs: tuple[Array, eqx.nn.State] = super().__call__(x, state, key=key, inference=inference)
            return theirs
        o = check_options(OPERATION, self.eps, 0, None)
        dtypes = [a.dtype for a in (x, self.weight, self.bias) if a is not None]
        wide, gamma, beta = inputs.promoted(x, self.weight, self.bias)
        like = jnp.ones(self.input_size, wide.dtype)  # x has as many channels
        inputs.check(OPERATION, 0, wide, like, like, gamma, beta)
        if self.inference if inference is None else inference:
            mean, var = self._running(state)
            y = by_statistics(wide, (0,), (mean, None), var, gamma, beta, None, o)
            dtypes.append(mean.dtype)
        else:
            batch = Batch(tuple(range(1, x.ndim)), _name(self.axis_name), rows=False)
            step = self._by_average if self.mode == "ema" else self._by_batch
            y, state = step(wide, batch, (gamma, beta), state, o)
        return y.astype(jnp.result_type(*dtypes)), state

    def _running(self, state: eqx.nn.State) -> tuple[Array, Array]:
        """Those of evaluation: mean = hidden / (1 - k), var = (hidden - k) / (1 - k), with k = momentum^batches."""
        if self.mode == "ema":
            found: tuple[Array, Array] = state.get(self.ema_state_index)  # type: ignore[arg-type]
            return found
        batches = state.get(self.batch_counter)  # type: ignore[arg-type]
        mean, var = state.get(self.batch_state_index)  # type: ignore[arg-type]
        start = jnp.where(batches == 0, 0, self.momentum**batches).astype(var.dtype)
        return mean / (1 - start), jnp.maximum(var - start, 0) / (1 - start)

    def _by_batch(
        self, x: Array, batch: Batch, affine: Any, state: eqx.nn.State, o: Options
    ) -> tuple[Array, eqx.nn.State]:
        gamma, beta = affine
        y, found = by_batch(inputs.Weighed(x), batch, gamma, beta, None, o)
        mean, var = state.get(self.batch_state_index)  # type: ignore[arg-type]
        moved = followed(mean, var, found, self.momentum)
        state = state.set(self.batch_counter, state.get(self.batch_counter) + 1)  # type: ignore[arg-type]
        return y, state.set(self.batch_state_index, moved)  # type: ignore[arg-type]

    def _by_average(
        self, x: Array, batch: Batch, affine: Any, state: eqx.nn.State, o: Options
    ) -> tuple[Array, eqx.nn.State]:
        """The average is taken about the batch's mean, so that this keeps its digits."""
        gamma, beta = affine
        found = on_channels(standardized(batch, o.eps, 0, x, None)[1], batch)
        first = state.get(self.ema_first_time_index)  # type: ignore[arg-type]
        hidden = state.get(self.ema_state_index)  # type: ignore[arg-type]
        mean, var = hidden[0].astype(x.dtype), hidden[1].astype(x.dtype)
        lag = jnp.where(first, 0, self.momentum * ((mean - found.high) - found.low))
        var = jnp.where(first, found.var(), equations.track(found.var(), var, self.momentum))
        y = by_statistics(x, (0,), (found.high, found.low + lag), var, gamma, beta, None, o)
        moved = (found.mean + lag).astype(hidden[0].dtype), var.astype(hidden[1].dtype)
        state = state.set(self.ema_first_time_index, jnp.array(False))  # type: ignore[arg-type]
        return y, state.set(self.ema_state_index, moved)  # type: ignore[arg-type]


def _name(name: Any) -> Any:
    return tuple(name) if isinstance(name, list) else name
