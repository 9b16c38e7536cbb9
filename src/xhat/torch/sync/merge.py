"""Many moments, or many sums, made one: neighbours first, in an order that depends on nothing but how many there are.

So all ranks, which hold the same numbers, hold the same bits afterwards. The formula is in `xhat.equations`. There are
few numbers, and they are NumPy's: a call of torch's takes longer than adding them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xhat import equations

__all__ = ["Array", "Moments", "added", "layer_by_layer", "merge", "merged"]

Array = npt.NDArray[Any]

# m, mean and m2, each one number per channel, or with leading dimensions; m may broadcast.
Moments = tuple[Array, Array, Array]


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two batches together; one of weight 0 adds nothing, whatever else it holds."""
    (ma, mean_a, m2_a), (mb, mean_b, m2_b) = a, b
    with np.errstate(all="ignore"):  # 0 / 0 where both are empty; NaN and infinity are numbers here
        m, mean, m2 = equations.merge(ma, mean_a, m2_a, mb, mean_b, m2_b)
    if ma.all() and mb.all():
        return m, mean, m2
    mean = np.where(mb == 0, mean_a, np.where(ma == 0, mean_b, mean))
    return m, mean, np.where(mb == 0, m2_a, np.where(ma == 0, m2_b, m2))


def merged(m: Array, mean: Array, m2: Array) -> Moments:
    """The moments of all the batches along dimension 0 together. m: (n, 1) or (n, C); mean, m2: (n, C)."""
    moments: Moments = _folded((m, mean, m2), merge)
    return moments


def added(sums: Array) -> Array:
    """The sum along dimension 0."""
    total: Array = _folded((sums,), lambda a, b: (a[0] + b[0],))[0]
    return total


def layer_by_layer(frames: Array, sizes: Iterable[Sequence[int]]) -> Iterator[list[Array]]:
    """Each layer's arrays (n, size), of frames (n, k) that hold them one behind another."""
    for mine in sizes:
        *arrays, frames = np.split(frames, np.cumsum(mine), axis=1)
        yield arrays


def _folded(parts: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Arrays along whose dimension 0 neighbours are combined until one is left."""
    while (n := len(parts[0])) > 1:
        even = n // 2 * 2
        pairs = combine(tuple(p[0:even:2] for p in parts), tuple(p[1:even:2] for p in parts))
        parts = (
            pairs
            if even == n
            else tuple(np.concatenate((q, p[even:])) for q, p in zip(pairs, parts, strict=True))
        )
    return tuple(p[0] for p in parts)
