"""What an input must be: one function per question, each raising one sentence with what it got and what would help.

No arithmetic of batch normalization and no layout lives here.
"""

import math
import operator
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from xhat.errors import ArgumentError, DegenerateBatchError, DtypeError, OutputError, ShapeError

__all__ = [
    "Array",
    "activation_of",
    "channel_array",
    "check_correction",
    "check_count",
    "check_eps",
    "check_output",
    "check_sum",
    "constants",
    "dtype_code",
    "floating",
    "like_x",
    "overlapping",
    "plain_array",
    "shown",
]

Array = npt.NDArray[Any]

_CODES = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}  # as in kernels.h
# The parameters that x of each dtype takes: its own dtype, or a wider one.
PARAMETER_DTYPES = {
    "float64": ("float64",),
    "float32": ("float32", "float64"),
    "float16": ("float16", "float32", "float64"),
    "bfloat16": ("bfloat16", "float32", "float64"),
}


def shown(shape: Sequence[int]) -> str:
    """A shape as it is written: (8, 64, 32, 32)."""
    return str(tuple(int(n) for n in shape))


@lru_cache
def dtype_code(dtype: np.dtype[Any]) -> int:
    """The kernels' number for one of the four dtypes."""
    return _CODES[dtype.name]


@lru_cache
def _known(dtype: np.dtype[Any]) -> bool:
    """Whether the kernels take this dtype: one of the four, in this machine's byte order."""
    return dtype.name in _CODES and dtype.isnative


def plain_array(value: Any, operation: str, name: str) -> Array:
    """The value as an array. Raises DtypeError for a masked one, which would lose its mask without a word."""
    if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray):
        remedy = (
            "Pass x.data; mask=~x.mask, of size 1 along the channels, keeps values out of the statistics."
            if name == "x"
            else f"Pass {name}.data or {name}.filled(0)."
        )
        raise DtypeError(f"{operation}: {name} is a masked array, expected one without a mask. {remedy}")
    try:
        return np.asarray(value)
    except ValueError:
        raise ShapeError(f"{operation}: {name} makes no array, expected rows of equal length.") from None


def floating(value: Any, operation: str, name: str) -> Array:
    """The value as an array of one of the four dtypes. Raises DtypeError, with the conversion that would help."""
    array = plain_array(value, operation, name)
    if _known(array.dtype):
        return array
    if array.dtype.name not in _CODES:
        remedy = (
            f"Convert it first, for example {name}.astype(np.float32)."
            if array.dtype.kind in "iub"
            else "Only real floating-point numbers have a batch norm here."
        )
        raise DtypeError(
            f"{operation}: {name} has dtype {array.dtype}, expected float64, float32, float16 or bfloat16. {remedy}"
        )
    raise DtypeError(
        f"{operation}: {name} has the byte order of another machine ({array.dtype.str}), expected the native one. "
        f'Convert it with {name}.astype({name}.dtype.newbyteorder("=")).'
    )


@lru_cache
def _takes(x: np.dtype[Any], parameter: np.dtype[Any]) -> bool:
    """Whether parameters of this dtype go with such an x."""
    return parameter.name in PARAMETER_DTYPES[x.name]


def channel_array(
    value: Any, operation: str, name: str, shape: tuple[int, ...], channels: tuple[int, ...], x: Array
) -> Array | None:
    """A parameter or statistic of each channel as an array; None stays None.

    Raises ShapeError unless it has the shape of x's channel axes, DtypeError unless its dtype is x's or wider.
    """
    if value is None:
        return None
    array = floating(value, operation, name)
    if array.shape != shape:
        axes = f"axis {channels[0]}" if len(channels) == 1 else f"axes {shown(channels)}"
        raise ShapeError(
            f"{operation}: {name} has shape {shown(array.shape)}, expected {shown(shape)} to match {axes} "
            f"of x {shown(x.shape)}."
        )
    if not _takes(x.dtype, array.dtype):
        raise DtypeError(
            f"{operation}: {name} has dtype {array.dtype}, expected {' or '.join(PARAMETER_DTYPES[x.dtype.name])} "
            f"for x of {x.dtype}: parameters may be wider than x, not narrower."
        )
    return array


def constants(
    mean: Any, var: Any, operation: str, channels: tuple[int, ...], x: Array
) -> tuple[Array, Array]:
    """Given statistics in float64. Raises what `channel_array` raises, and ArgumentError without one or below 0."""
    if mean is None or var is None:
        raise ArgumentError(
            f"{operation}: mean and var are needed, got None. batch_norm takes the batch's own."
        )
    shape = tuple(x.shape[a] for a in channels)
    found = []
    for name, value in (("mean", mean), ("var", var)):
        # They may be wider or narrower than x: they are no parameters.
        value = floating(value, operation, name).astype(np.float64)
        found.append(channel_array(value, operation, name, shape, channels, x))
    mean, var = found
    if bool((var < 0).any()):
        raise ArgumentError(
            f"{operation}: var has a negative value ({np.nanmin(var):g}), expected at least 0."
        )
    return mean, var


def like_x(value: Any, operation: str, name: str, x: Array) -> Array:
    """An array of x's shape and dtype (dy, residual). Raises ShapeError or DtypeError."""
    array = floating(value, operation, name)
    if array.shape != x.shape:
        raise ShapeError(
            f"{operation}: {name} has shape {shown(array.shape)}, expected {shown(x.shape)}, the shape of x."
        )
    if array.dtype != x.dtype:
        raise DtypeError(
            f"{operation}: {name} has dtype {array.dtype}, expected {x.dtype}, the dtype of x. "
            f"Convert it with {name}.astype(x.dtype)."
        )
    return array


def check_eps(eps: Any, operation: str) -> float:
    """eps as a float. Raises ArgumentError unless it is finite and above 0."""
    try:
        value = float(eps)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentError(f"{operation}: eps is {eps!r}, expected a finite number above 0, such as 1e-5.")
    return value


def check_correction(correction: Any, operation: str, name: str = "correction") -> int:
    """The correction as an int. Raises ArgumentError unless it is 0 or 1."""
    try:
        value = operator.index(correction)
    except TypeError:
        value = -1
    if value not in (0, 1):
        raise ArgumentError(
            f"{operation}: {name} is {correction!r}, expected 0 (divide by m) or 1 (divide by m - 1)."
        )
    return value


def check_sum(m: float, operation: str) -> float:
    """m, the sum of weights. Raises ArgumentError at the ends of float64, where digits are lost."""
    if m and not 1e-300 < m < 1e300:
        raise ArgumentError(
            f"{operation}: the weights sum to m = {m:g}, expected 0 or 1e-300 to 1e300. Scale the weights."
        )
    return m


def check_count(
    count: float, values: int, correction: int, operation: str, shape: Sequence[int], *, masked: bool
) -> None:
    """Raises DegenerateBatchError where a channel has too little for a variance: m <= correction, or one value."""
    if values == 0:
        raise DegenerateBatchError(
            f"{operation}: every weight of the mask is 0, expected at least 2 values per channel with a weight. "
            "Leave this batch out, or normalize it with running statistics."
        )
    if values == 1 and masked:
        raise DegenerateBatchError(
            f"{operation}: the mask leaves one value per channel of x {shown(shape)}, expected at least 2: a single "
            "value has no variance. Leave this batch out, or normalize it with running statistics."
        )
    if values == 1:
        raise DegenerateBatchError(
            f"{operation}: x {shown(shape)} has one value per channel, expected at least 2: a single value has no "
            "variance. Leave out the last, smaller batch, or normalize with running statistics."
        )
    if count <= correction:
        raise DegenerateBatchError(
            f"{operation}: the weights sum to m = {count:g}, expected more than the correction {correction}: "
            "the variance divides by m - correction. Scale the weights, or use correction=0."
        )


def activation_of(activation: Any, operation: str) -> tuple[str | None, float]:
    """The activation's kind (None, "leaky_relu" or "silu") and slope; relu is a leaky ReLU of slope 0."""
    if activation is None:
        return None, 0.0
    if isinstance(activation, str) and activation in ("relu", "silu"):
        return ("silu" if activation == "silu" else "leaky_relu"), 0.0
    if isinstance(activation, tuple) and len(activation) == 2 and str(activation[0]) == "leaky_relu":
        try:
            slope = float(activation[1])
        except (TypeError, ValueError, OverflowError):
            slope = math.nan
        if 0 <= slope < math.inf:
            return "leaky_relu", slope
        raise ArgumentError(
            f"{operation}: leaky_relu has slope {activation[1]!r}, expected a finite number of at least 0."
        )
    raise ArgumentError(
        f'{operation}: activation is {activation!r}, expected None, "relu", ("leaky_relu", slope) or "silu".'
    )


def same_memory(a: Array, b: Array) -> bool:
    """Whether two arrays are the same numbers at the same places."""
    return a is b or (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.shape == b.shape
        and a.dtype == b.dtype
        and all(s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True) if n > 1)
    )


def overlapping(a: Array, b: Array) -> bool:
    """Whether two arrays share a number; when that is too hard to tell, they do."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=10_000)  # type: ignore[arg-type]  # NumPy's stubs know -1 and 0 only
    except np.exceptions.TooHardError:
        return True


def check_output(
    out: Any, operation: str, name: str, x: Array, over: Array | None, others: dict[str, Array]
) -> Array:
    """A preallocated result of x's shape and dtype: writable, and apart from every input but, exactly, `over`."""
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):  # a mask would hide the result
        raise OutputError(f"{operation}: {name} is {type(out).__name__}, expected a NumPy array to write to.")
    if out.shape != x.shape or out.dtype != x.dtype:
        raise OutputError(
            f"{operation}: {name} has shape {shown(out.shape)} and dtype {out.dtype}, expected {shown(x.shape)} "
            f"and {x.dtype}, those of x."
        )
    if not out.flags.writeable:
        raise OutputError(f"{operation}: {name} is read-only, expected a writable array. Pass a copy.")
    if overlapping_itself(out.shape, out.strides, out.itemsize):
        raise OutputError(
            f"{operation}: {name} overlaps itself, expected distinct elements. Pass np.empty_like(x)."
        )
    for other_name, other in others.items():
        if overlapping(out, other) and not (other is over and same_memory(out, other)):
            raise OutputError(
                f"{operation}: {name} overlaps {other_name}, expected memory of its own. Pass np.empty_like(x)."
            )
    return out


@lru_cache(maxsize=4096)
def overlapping_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether two indices of such an array name one number, as in a broadcast one."""
    reach = 0
    for size, stride in sorted(zip(shape, strides, strict=True), key=lambda pair: abs(pair[1])):
        if size > 1:
            if abs(stride) < max(reach, itemsize):
                return True
            reach = max(reach, abs(stride) * size)
    return False
