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

__all__ = ["Batch", "Moments", "merged"]


class Moments(NamedTuple):
    """Count, mean and m2 = sum w (x - mean)^2 of each channel. The mean is high + low, with twice a number's digits.

    It is a pytree, as every NamedTuple is. An empty batch has count 0, and zeros.
    """

    count: Array  # type: ignore[assignment]  # the number m, not a tuple's method
    high: Array
    low: Array
    m2: Array

    @property
    def mean(self) -> Array:
        """high + low, rounded to their dtype."""
        return self.high + self.low

    def var(self, correction: int = 0) -> Array:
        """var = m2 / (m - correction); NaN where m is not above it. Raises ArgumentError for another correction."""
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
            return _moments(x, None, self.total, m, w)
        m = jnp.asarray(values, x.dtype) if w is None else self.here(w)
        found = merged(self._rows(_moments(x, None, self.here, m, w)))
        return found if m.size > 1 else found._replace(count=found.count.max(keepdims=True, initial=0))

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

    means = _moments(rows.high, rows.low, total, total(rows.count), rows.count)
    m, high, low, m2 = (v[0] for v in means)
    return Moments(m, high, low, m2 + rows.m2.sum(0))


def _moments(x: Array, rest: Array | None, total: Callable[[Any], Any], m: Array, w: Array | None) -> Moments:
    """The moments of x + rest about a rough mean of x, which cancels: every difference is small.

    Where w is 0, x may be anything. No derivative is taken of this.
    """

    def kept(v: Array) -> Array:
        return v if w is None else jnp.where(w != 0, v, 0)

    safe = jnp.where(m > 0, m, 1)
    rough = total(kept(x) if w is None else kept(x) * w) / safe
    d = x - rough if rest is None else (x - rough) + rest
    low, m2 = equations.moments(kept(d), total, safe, 1 if w is None else w)
    high = rough + low
    m2 = m2 + 0 * m2  # NaN where a square overflows: an infinite variance would hide x
    return Moments(m, high, (rough - high) + low, m2)
