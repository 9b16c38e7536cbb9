"""The arrays of a call: what they must be, in the sentences of NumPy's gate, and masks as weights.

Shapes, dtypes and options are checked whenever a call is traced, values where they are known.
No formula lives here.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from xhat.checks import check_count, check_dtype, check_kinds, check_sum, check_variance, plain_array
from xhat.errors import ArgumentError, DtypeError
from xhat.jax.moments import Batch
from xhat.operands import check_mask, check_weights

__all__ = [
    "Weighed",
    "array",
    "arrays",
    "batch_of",
    "check",
    "check_batch",
    "mask_for",
    "precision",
    "promoted",
    "weighed",
]

Maybe = Array | None


def array(value: Any, operation: str, name: str) -> Array:
    """The value as an array of JAX. Raises DtypeError, ShapeError."""
    if not isinstance(value, jax.Array) and not hasattr(value, "__jax_array__"):
        value = plain_array(value, operation, name)
        check_dtype(operation, name, value.dtype)  # as long as it has its own
    a: Array = jnp.asarray(value)
    if not isinstance(a.dtype, np.dtype):
        raise DtypeError(
            f"{operation}: {name} has dtype {a.dtype}, expected float64, float32, float16 or bfloat16. "
            "Only real floating-point numbers have a batch norm here."
        )
    return a


def arrays(operation: str, **given: Any) -> list[Any]:
    """The values as arrays; None stays None, except for x."""
    return [None if v is None and n != "x" else array(v, operation, n) for n, v in given.items()]


def mask_for(
    value: Any, operation: str, x: Array, axes: tuple[int, ...], per_channel: bool = False
) -> Array | None:
    """The mask, if it broadcasts to x, with size 1 along the channels unless per_channel.

    Its weights are checked where they are known. Raises ShapeError, DtypeError, ArgumentError.
    """
    if value is None:
        return None
    if not isinstance(value, jax.Array):
        value = plain_array(value, operation, "mask")
    target = tuple(1 if a in axes and not per_channel else n for a, n in enumerate(x.shape))
    check_mask(operation, value.shape, value.dtype, target, x.shape, axes)
    if known(value):
        check_weights(operation, np.asarray(value).astype(np.float64))
    return jnp.asarray(value)


def precision(*arrays: Any) -> Any:
    """The dtype of the arithmetic: at least float32, and float64 where an array is."""
    return jnp.float64 if any(a is not None and a.dtype == jnp.float64 for a in arrays) else jnp.float32


def promoted(x: Any, *others: Any) -> list[Any]:
    """All of them in the dtype of the arithmetic, for layers, which take parameters that are narrower than x."""
    dtype = precision(x, *others)
    return [None if a is None else a.astype(dtype) for a in (x, *others)]


def batch_of(operation: str, axes: tuple[int, ...], ndim: int, name: Any, groups: Any) -> Batch:
    """What is summed over, for channels along these axes. Raises ArgumentError for groups of no devices."""
    if groups is not None and name is None:
        raise ArgumentError(
            f"{operation}: axis_index_groups is given without an axis_name, expected both. Pass the name of the "
            "devices' axis."
        )
    rows = None if groups is None else tuple(tuple(int(i) for i in group) for group in groups)
    names = tuple(name) if isinstance(name, list) else name
    return Batch(tuple(a for a in range(ndim) if a not in axes), names, rows)


def check(
    operation: str, axis: Any, x: Array, mean: Maybe = None, var: Maybe = None, gamma: Maybe = None,
    beta: Maybe = None, residual: Maybe = None, *, part: bool = False,
) -> tuple[int, ...]:  # fmt: skip
    """The channel axes, if all arrays fit x. part: whether x need not have a variance.

    Raises ShapeError, DtypeError, DegenerateBatchError.
    """
    kinds = (None if a is None else (a.shape, a.dtype) for a in (mean, var, gamma, beta, residual))
    axes = check_kinds(operation, x.shape, x.dtype, axis, part, *kinds)
    if var is not None and known(var):
        check_variance(operation, np.asarray(var))
    return axes


def check_batch(operation: str, x: Array, mask: Maybe, batch: Batch, correction: int) -> None:
    """Raises DegenerateBatchError where it is known that no channel has a variance, ArgumentError for a sum of weights.

    On many devices, others have other masks; and symbolic dimensions have no size yet.
    """
    if not all(isinstance(n, int) for n in x.shape) or 0 in x.shape:
        return
    values = math.prod(x.shape[a] for a in batch.axes) * batch.devices()
    count = float(values)
    if mask is not None:
        if not known(mask) or batch.name is not None:
            return
        weights = np.broadcast_to(np.asarray(mask).astype(np.float64), x.shape)
        count = check_sum(float(weights.sum(batch.axes).max()), operation)
        values = int(np.count_nonzero(weights, batch.axes).max())
    check_count(count, values, correction, operation, x.shape, masked=mask is not None)


def known(a: Array) -> bool:
    """Whether values can be looked at."""
    return not isinstance(a, jax.core.Tracer)


class Weighed(NamedTuple):
    """x with weights: 0 stands where x was NaN or infinite without a weight (padding)."""

    x: Array
    w: Maybe = None
    padding: Maybe = None


def weighed(x: Array, mask: Maybe, axes: tuple[int, ...], dtype: Any, per_channel: bool = False) -> Weighed:
    """x and a mask of `mask_for` in this dtype; the weights have x's shape, but for size 1 along the channels."""
    wide = x.astype(dtype)
    if mask is None:
        return Weighed(wide)
    target = tuple(1 if a in axes and not per_channel else n for a, n in enumerate(x.shape))
    w = jnp.broadcast_to(mask.reshape((1,) * (x.ndim - mask.ndim) + mask.shape).astype(dtype), target)
    padding = (w == 0) & ~jnp.isfinite(wide)
    return Weighed(jnp.where(padding, 0, wide), w, padding)
