"""Masks: what they must be, their weights as the kernels walk them, and the sum m of these.

No other value is computed here.
"""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from xhat.checks import Array, check_sum, plain_array, shown
from xhat.errors import ArgumentError, DtypeError, ShapeError
from xhat.layout import View

__all__ = ["unflattened", "weights_for"]


def _weights_of(mask: Any, operation: str, x: Array, channels: tuple[int, ...]) -> Array:
    """The mask in float64, broadcast to x's shape but 1 along the channel axes.

    Raises DtypeError for what is not bool or real, ShapeError for a shape that does not broadcast,
    ArgumentError for negative, infinite or NaN weights.
    """
    array = plain_array(mask, operation, "mask")
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise DtypeError(f"{operation}: mask has dtype {array.dtype}, expected bool or real weights.")
    target = tuple(1 if a in channels else n for a, n in enumerate(x.shape))
    try:
        array = np.broadcast_to(array, target)
    except ValueError:
        raise ShapeError(
            f"{operation}: mask has shape {shown(array.shape)}, expected one that broadcasts to {shown(target)}: "
            f"x is {shown(x.shape)}, and a mask has size 1 along the channels."
        ) from None
    weights: Array = array.astype(np.float64)
    if not bool(np.isfinite(weights).all()):
        raise ArgumentError(
            f"{operation}: mask has NaN or infinite weights, expected finite weights of at least 0."
        )
    if bool((weights < 0).any()):
        raise ArgumentError(
            f"{operation}: mask has a negative weight ({weights.min():g}), expected weights of at least 0."
        )
    return weights


@lru_cache(maxsize=4096)
def _values(shape: tuple[int, ...], channels: tuple[int, ...]) -> int:
    """How many numbers a channel has."""
    return math.prod(n for a, n in enumerate(shape) if a not in channels)


def weights_for(
    mask: Any, operation: str, x: Array, channels: tuple[int, ...], view: View
) -> tuple[Array | None, float, int]:
    """Weights in the view's order (None: all 1), their sum m, and how many are not 0."""
    values = _values(x.shape, channels)
    if mask is None:
        return None, float(values), values
    weights = _weights_of(mask, operation, x, channels)
    if bool((weights == 1).all()):
        return None, float(values), values
    order = view.outer + view.inner
    rest = tuple(a for a in range(x.ndim) if a not in order)
    flat = np.ascontiguousarray(weights.transpose(rest + order).reshape(-1))
    return flat, _sum_of(flat, operation), int(np.count_nonzero(flat))


def _sum_of(weights: Array, operation: str) -> float:
    """m."""
    with np.errstate(over="ignore"):
        return check_sum(float(weights.sum()), operation)


def unflattened(weights: Array, view: View, shape: tuple[int, ...]) -> Array:
    """Weights from the view's order back to x's axes, of size 1 along the channels."""
    order = view.outer + view.inner
    rest = tuple(a for a in range(len(shape)) if a not in order)
    sizes = [1] * len(rest) + [shape[a] for a in order]
    return weights.reshape(sizes).transpose(np.argsort(rest + order))
