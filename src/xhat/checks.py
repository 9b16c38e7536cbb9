"""What an input must be: one function per question, each raising one sentence with what it got and what would help.

No arithmetic of batch normalization and no layout lives here.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xhat.errors import ArgumentError, DegenerateBatchError, DtypeError, OptionError, ShapeError
from xhat.layout import channel_axes

__all__ = [
    "CONSTANTS",
    "Array",
    "Kind",
    "activation_of",
    "check_correction",
    "check_count",
    "check_dtype",
    "check_eps",
    "check_kinds",
    "check_like_x",
    "check_sum",
    "check_variance",
    "mask_remedy",
    "number",
    "plain_array",
    "refuse_options",
    "shown",
]

if TYPE_CHECKING:
    Array = npt.NDArray[Any]
else:
    Array = np.ndarray  # a short name in signatures, which help() and the documentation show
# Shape and dtype of an array; None for an argument that was not given.
Kind = tuple[tuple[int, ...], Any] | None

# Types of options whose value cannot change.
CONSTANTS = (type(None), bool, int, float, str, np.float64, np.float32, np.int64)

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


def plain_array(value: Any, operation: str, name: str) -> Array:
    """The value as an array. Raises DtypeError for a masked array, which would silently lose its mask."""
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


def mask_remedy(mask: tuple[int, ...], shape: tuple[int, ...], axes: tuple[int, ...]) -> str:
    """What to pass in place of a mask that lacks the channel axes, such as (N, L) for x (N, C, L)."""
    if len(axes) != 1 or mask != tuple(n for a, n in enumerate(shape) if a not in axes):
        return ""
    return f" Pass mask[{', '.join(':' * axes[0] or '')}{', ' * bool(axes[0])}None]."


def check_dtype(operation: str, name: str, dtype: np.dtype[Any]) -> None:
    """Raises DtypeError unless this is one of the four dtypes, with the conversion that would help."""
    if dtype.name not in PARAMETER_DTYPES:
        remedy = (
            f"Convert it first, for example {name}.astype(np.float32)."
            if dtype.kind in "iub"
            else "Only real floating-point numbers have a batch norm here."
        )
        raise DtypeError(
            f"{operation}: {name} has dtype {dtype}, expected float64, float32, float16 or bfloat16. {remedy}"
        )
    if not dtype.isnative:
        raise DtypeError(
            f"{operation}: {name} has the byte order of another machine ({dtype.str}), expected the native one. "
            f'Convert it with {name}.astype({name}.dtype.newbyteorder("=")).'
        )


def check_kinds(
    operation: str, shape: tuple[int, ...], dtype: Any, axis: Any, masked: bool, mean: Kind, var: Kind, gamma: Kind,
    beta: Kind, residual: Kind,
) -> tuple[int, ...]:  # fmt: skip
    """The channel axes of x, if the shapes and dtypes of all arrays fit it.

    Raises ShapeError, DtypeError, and DegenerateBatchError for a single value per channel, unless there is a mask.
    """
    check_dtype(operation, "x", dtype)
    axes = channel_axes(len(shape), axis, operation)
    for name, vector in (("mean", mean), ("var", var), ("gamma", gamma), ("beta", beta)):
        if vector is not None:
            _check_vector(operation, name, vector, shape, axes)
            if name in ("gamma", "beta"):  # statistics may be narrower than x
                _check_parameter(operation, name, vector[1], dtype)
    if residual is not None:
        check_like_x(operation, "residual", residual, shape, dtype)
    values = math.prod(n for a, n in enumerate(shape) if a not in axes)
    if values == 1 and mean is None and not masked and 0 not in shape:
        check_count(1, 1, 0, operation, shape, masked=False)
    return axes


def _check_vector(
    operation: str,
    name: str,
    vector: tuple[tuple[int, ...], Any],
    shape: tuple[int, ...],
    axes: tuple[int, ...],
) -> None:
    """Raises DtypeError or ShapeError unless this is an element for each channel of x."""
    check_dtype(operation, name, vector[1])
    channels = tuple(shape[a] for a in axes)
    if vector[0] != channels:
        where = f"axis {axes[0]}" if len(axes) == 1 else f"axes {shown(axes)}"
        last = vector[0] == shape[-1:] and axes != (len(shape) - 1,)
        remedy = " Pass axis=-1 where the channels are last." if last else ""
        raise ShapeError(
            f"{operation}: {name} has shape {shown(vector[0])}, expected {shown(channels)} to match {where} "
            f"of x {shown(shape)}.{remedy}"
        )


def _check_parameter(operation: str, name: str, dtype: Any, x: Any) -> None:
    """Raises DtypeError where a parameter is narrower than x."""
    if dtype.name not in PARAMETER_DTYPES[x.name]:
        raise DtypeError(
            f"{operation}: {name} has dtype {dtype}, expected {' or '.join(PARAMETER_DTYPES[x.name])} "
            f"for x of {x}: parameters may be wider than x, not narrower."
        )


def check_like_x(
    operation: str, name: str, kind: tuple[tuple[int, ...], Any], shape: tuple[int, ...], dtype: Any
) -> None:
    """Raises ShapeError or DtypeError unless an array of this kind (dy, residual) has the shape and dtype of x."""
    check_dtype(operation, name, kind[1])
    if kind[0] != shape:
        raise ShapeError(
            f"{operation}: {name} has shape {shown(kind[0])}, expected {shown(shape)}, the shape of x."
        )
    if kind[1] != dtype:
        raise DtypeError(
            f"{operation}: {name} has dtype {kind[1]}, expected {dtype}, the dtype of x. "
            f"Convert it with {name}.astype(x.dtype)."
        )


def check_variance(operation: str, var: Array) -> None:
    """Raises ArgumentError for a negative variance, which every call may bring; NaN passes."""
    if var.dtype.kind == "V":  # NumPy warns of a NaN of bfloat16 that is compared
        var = var.astype(np.float32)
    if bool((var < 0).any()):
        raise ArgumentError(
            f"{operation}: var has a negative value ({np.nanmin(var):g}), expected at least 0."
        )


def number(value: Any) -> float:
    """The value as a float; NaN for what is no number, which strings and bools are not, though float() takes them."""
    if isinstance(value, (str, bytes, bool, np.bool_)):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def check_eps(eps: Any, operation: str) -> float:
    """eps as a float. Raises ArgumentError unless it is finite and above 0."""
    value = number(eps)
    if not 0 < value < math.inf:
        raise ArgumentError(f"{operation}: eps is {eps!r}, expected a finite number above 0, such as 1e-5.")
    return value


def check_correction(correction: Any, operation: str, name: str = "correction") -> int:
    """The correction as an int. Raises ArgumentError unless it is 0 or 1, which bools are not."""
    try:
        value = -1 if isinstance(correction, bool) else operator.index(correction)
    except TypeError:
        value = -1
    if value not in (0, 1):
        raise ArgumentError(
            f"{operation}: {name} is {correction!r}, expected 0 (divide by m) or 1 (divide by m - 1)."
        )
    return value


def check_sum(m: float, operation: str) -> float:
    """m, the sum of weights. Raises ArgumentError near the limits of float64, where digits are lost."""
    if m and not 1e-300 < m < 1e300:
        raise ArgumentError(
            f"{operation}: the weights sum to m = {m:g}, expected 0 or 1e-300 to 1e300. Scale the weights."
        )
    return m


def check_count(
    count: float, values: int, correction: int, operation: str, shape: Sequence[int], *, masked: bool
) -> None:
    """Raises DegenerateBatchError where a channel has no variance: m <= correction, or a single value."""
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
        slope = number(activation[1])
        if 0 <= slope < math.inf:
            return "leaky_relu", abs(slope)  # of -0.0, which equals 0.0 as a key
        raise ArgumentError(
            f"{operation}: leaky_relu has slope {activation[1]!r}, expected a finite number of at least 0."
        )
    raise ArgumentError(
        f'{operation}: activation is {activation!r}, expected None, "relu", ("leaky_relu", slope) or "silu".'
    )


_RUNNING = "xhat.numpy.BatchNorm is the layer with running statistics."
_REMEDIES = {
    "training": "batch_norm normalizes by the batch's own statistics, normalize by given ones.",
    "momentum": _RUNNING,
    "running_mean": _RUNNING,
    "running_var": _RUNNING,
    "epsilon": "It is called eps here.",
    "weight": "It is called gamma here.",
    "bias": "It is called beta here.",
    "scale": "It is called gamma here.",
    "offset": "It is called beta here.",
}


def refuse_options(
    operation: str, unknown: Mapping[str, Any], remedies: Mapping[str, str] = _REMEDIES
) -> None:
    """Raises OptionError for options that other libraries have. remedies: what they are called here."""
    name = next(iter(unknown))
    remedy = f" {remedies[name]}" if name in remedies else ""
    raise OptionError(f"{operation}: got an option {name!r}, which it does not have.{remedy}")
