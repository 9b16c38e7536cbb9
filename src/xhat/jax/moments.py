"""Moments of a batch whose mean is two floats, so that float32 keeps its digits far from zero; and how they merge.

The formulas are those of `xhat.equations`, about a rough mean. What they are summed over lives here: axes, and devices.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from xhat import equations
from xhat.checks import check_correction

__all__ = ["Batch", "Moments", "followed", "merged"]


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of each channel, as arrays of JAX.

    ::

        m = sum w     mu = high + low = sum w x / m     m2 = sum w (x - mu)^2

    The mean is the sum of two arrays, which keeps more digits than a number has. The object is a pytree, as every
    NamedTuple is. An empty batch has count 0, and zeros.

    Attributes
    ----------
    count : jax.Array
        The number m of values per channel, or the sum of their weights: a scalar or an array in the shape of the
        channels.
    high, low : jax.Array
        The mean and what rounding has left of it, in the shape of the channels.
    m2 : jax.Array
        The sum of squared deviations from the mean, in the shape of the channels.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from xhat.jax import moments
    >>> found = jax.jit(moments)(jnp.array([[1.0], [2.0], [6.0]]))
    >>> float(found.count), found.mean.tolist(), found.m2.tolist()
    (3.0, [3.0], [14.0])
    """

    count: Array  # type: ignore[assignment]  # the number m, not a tuple's method
    high: Array
    low: Array
    m2: Array

    @property
    def mean(self) -> Array:
        """The mean, high + low, rounded to their dtype."""
        return self.high + self.low

    def var(self, correction: int = 0) -> Array:
        """Return the variance, ``m2 / (m - correction)``.

        Parameters
        ----------
        correction : {0, 1}, default 0
            0 to divide by m, 1 to divide by m - 1.

        Returns
        -------
        jax.Array
            The variance, in the shape of the channels; NaN unless m is greater than the correction.

        Raises
        ------
        ArgumentError
            For another correction.
        """
        m = self.count - check_correction(correction, "var")
        variance: Array = equations.variance(self.m2, jnp.where(m > 0, m, jnp.nan))
        return variance


class Batch(NamedTuple):
    """What a batch is summed over: the axes of x, and the devices (or vmapped examples) along named axes.

    rows: whether the moments of devices are exchanged as rows, in one sum; else sums are, in three.
    """

    axes: tuple[int, ...]
    name: Hashable = None
    groups: tuple[tuple[int, ...], ...] | None = None
    rows: bool = True

    def here(self, v: Array) -> Array:
        """The sum over the axes, which stay with size 1."""
        return v.sum(self.axes, keepdims=True)

    def total(self, v: Array) -> Array:
        """The sum over the whole batch."""
        return self._exchanged(self.here(v))

    def totals(self, *vs: Array) -> tuple[Array, ...]:
        """Many such sums, in one exchange."""
        if self.name is None:
            return tuple(map(self.here, vs))
        return tuple(self._exchanged(jnp.stack([self.here(v) for v in vs])))

    def _exchanged(self, v: Array) -> Array:
        if self.name is None:
            return v
        total: Array = lax.psum(v, self.name, axis_index_groups=self.groups)
        return total

    def devices(self) -> int:
        """How many devices, or vmapped examples, hold a part of the batch."""
        if self.name is None:
            return 1
        return len(self.groups[0]) if self.groups else int(lax.psum(1, self.name))

    def moments(self, x: Array, w: Array | None) -> Moments:
        """The moments of the whole batch, with size 1 along the axes; w: of x's shape, or with size 1 for channels."""
        values = math.prod(x.shape[a] for a in self.axes)
        if self.name is None or not self.rows:
            m = self.devices() * jnp.asarray(values, x.dtype) if w is None else self.total(w)
            rough = _rough_mean(x, self.total, m, w)
            return _moments_about(rough, x - rough, self.total, m, w)
        m = jnp.asarray(values, x.dtype) if w is None else self.here(w)
        rough = _rough_mean(x, self.here, m, w)
        found = merged(self._rows(_moments_about(rough, x - rough, self.here, m, w)))
        if m.size > 1:  # a mask that tells channels apart
            return found
        count = found.count.max(keepdims=True) if found.count.size else self._exchanged(m)
        return found._replace(count=count)

    def _rows(self, mine: Moments) -> Moments:
        """The moments of all devices along a new first dimension: one sum of rows that are 0 but for one's own."""
        row = jnp.stack([jnp.broadcast_to(v, mine.m2.shape) for v in mine])
        places = jnp.arange(int(lax.psum(1, self.name))) == lax.axis_index(self.name)
        rows = jnp.where(places.reshape(-1, *[1] * row.ndim), row[None], 0)
        return Moments(*jnp.moveaxis(self._exchanged(rows), 1, 0))


def merged(rows: Moments) -> Moments:
    """The moments of batches along dimension 0 together: those of their means, weighed by the counts, and all m2."""

    def total(v: Array) -> Array:
        return v.sum(0, keepdims=True)

    # The mean of one of them: it is selected and not computed, so a compiler that computes it twice gets the same bits.
    heaviest = jnp.argmax(rows.count, 0, keepdims=True)
    rough = lax.stop_gradient(jnp.take_along_axis(rows.high, heaviest, 0))
    means = _moments_about(rough, (rows.high - rough) + rows.low, total, total(rows.count), rows.count)
    m, high, low, m2 = (v[0] for v in means)
    return Moments(m, high, low, m2 + rows.m2.sum(0))


def _rough_mean(x: Array, total: Callable[[Any], Any], m: Array, w: Array | None) -> Array:
    """A mean of x but for its rounding, whose last binary digits are 0.

    These digits are no loss, since a mean about this one follows; it cancels, and so it has no derivative. They keep a
    compiler that computes it in several places from contracting a product and a difference: it would be another number
    in each.
    """
    bits = {4: jnp.int32, 8: jnp.int64}[x.dtype.itemsize]
    mean = total(x if w is None else jnp.where(w != 0, x, 0) * w) / jnp.where(m > 0, m, 1)
    short = lax.bitcast_convert_type(lax.bitcast_convert_type(lax.stop_gradient(mean), bits) & -4, x.dtype)
    return lax.stop_gradient(short)


def _moments_about(rough: Array, d: Array, total: Callable[[Any], Any], m: Array, w: Array | None) -> Moments:
    """The moments of rough + d, where d is small: every difference is. Where w is 0, d may be anything."""
    d = d if w is None else jnp.where(w != 0, d, 0)
    low, m2 = equations.moments(d, total, jnp.where(m > 0, m, 1), 1 if w is None else w)
    return Moments(
        m, rough, low, m2 + 0 * m2
    )  # NaN where a square overflows: an infinite variance would hide x


def followed(mean: Array, var: Array, found: Moments, momentum: Any) -> tuple[Array, Array]:
    """The running statistics after a batch, whose variance is m2 / m; a channel without a value leaves them."""
    weight = 1 - momentum
    return (
        jnp.where(found.count > 0, equations.track(mean, found.mean, weight), mean).astype(mean.dtype),
        jnp.where(found.count > 0, equations.track(var, found.var(), weight), var).astype(var.dtype),
    )
