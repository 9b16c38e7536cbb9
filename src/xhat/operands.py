"""How arrays meet the kernels: in place where the plan's view walks them, else by one copy; masks; places for results.

Nothing else is computed here.
"""

from typing import Any

import numpy as np

from xhat.checks import Array, check_count, check_sum, mask_remedy, plain_array, shown
from xhat.errors import ArgumentError, DtypeError, OutputError, ShapeError
from xhat.layout import Strides, View, strides_on, weight_order, weight_sizes
from xhat.plan import Plan

__all__ = [
    "Operand",
    "as_mask",
    "check_mask",
    "check_output",
    "check_weights",
    "overlapping",
    "read",
    "weights_for",
    "write",
]

# An array as the kernels take it: a buffer and its strides on the view.
Operand = tuple[Array, Strides]


def read(array: Array, plan: Plan) -> Operand:
    """An input, copied once where the view does not walk it."""
    if (strides := _strides(array, plan)) is None:
        copy = _dense(array, plan.view)
        copy[...] = array
        return read(copy, plan)
    return _buffer(array), strides


def write(array: Array, plan: Plan) -> tuple[Operand, Array]:
    """A result, and the array that receives it: another one where the view does not walk the caller's."""
    if (strides := _strides(array, plan)) is None:
        return write(_dense(array, plan.view), plan)
    return (_buffer(array), strides), array


def _buffer(array: Array) -> Array:
    """The array with a dtype that Python's buffers have, which bfloat16 is not."""
    return array.view(np.uint16) if array.dtype.kind == "V" else array


def _strides(array: Array, plan: Plan) -> Strides | None:
    """The strides of an array of x's shape on the view; None where the view does not walk it, or it is misaligned."""
    memory = array.strides
    if not array.flags.aligned:
        return None
    if memory == plan.memory and plan.strides is not None:
        return plan.strides
    size = array.itemsize
    if any(s % size for s in memory):
        return None
    return strides_on(plan.view, plan.shape, tuple(s // size for s in memory))


def _dense(like: Array, view: View) -> Array:
    """A new array of this shape and dtype that the view walks."""
    walked = view.outer + view.channel + view.inner
    order = tuple(a for a in range(like.ndim) if a not in walked) + walked
    return np.empty([like.shape[a] for a in order], like.dtype).transpose(np.argsort(order))


# --------------------------------------------------------------------------------------------------------- masks


def weights_for(mask: Any, operation: str, x: Array, plan: Plan) -> tuple[Array | None, float]:
    """The weights of a mask in the order in which the kernels read them, and their sum m. None: all weights are 1.

    Raises DtypeError for what is not bool or real, ShapeError for a shape that does not broadcast, ArgumentError for
    negative, infinite or NaN weights, DegenerateBatchError for a batch without a variance.
    """
    weights = _weights_of(mask, operation, x, plan.axes)
    values = plan.view.shape[0] * plan.view.shape[2]
    flat, count = None, float(values)
    if not bool((weights == 1).all()):
        flat = np.ascontiguousarray(weights.transpose(weight_order(plan.view, x.ndim)).reshape(-1))
        with np.errstate(over="ignore"):
            count, values = check_sum(float(flat.sum()), operation), int(np.count_nonzero(flat))
    if x.size and operation != "moments":  # which are defined without a variance
        check_count(count, values, plan.options.correction, operation, x.shape, masked=flat is not None)
    return flat, count


def check_mask(operation: str, shape: tuple[int, ...], dtype: Any, target: tuple[int, ...], x: tuple[int, ...],
               axes: tuple[int, ...]) -> None:  # fmt: skip
    """Raises unless a mask of this shape and dtype can weigh x of shape x, whose weights have the shape target."""
    if dtype.kind not in "biuf" and dtype.name != "bfloat16":
        raise DtypeError(f"{operation}: mask has dtype {dtype}, expected bool or real weights.")
    sizes = (1,) * (len(target) - len(shape)) + shape
    if len(sizes) > len(target) or any(n not in (1, t) for n, t in zip(sizes, target, strict=True)):
        raise ShapeError(
            f"{operation}: mask has shape {shown(shape)}, expected one that broadcasts to {shown(target)}: "
            f"x is {shown(x)}, and a mask has size 1 along the channels."
            f"{mask_remedy(shape, x, axes)}"
        )


def check_weights(operation: str, weights: Array) -> None:
    """Raises ArgumentError for weights that are negative, infinite or NaN."""
    if not bool(np.isfinite(weights).all()):
        raise ArgumentError(
            f"{operation}: mask has NaN or infinite weights, expected finite weights of at least 0."
        )
    if bool((weights < 0).any()):
        raise ArgumentError(
            f"{operation}: mask has a negative weight ({weights.min():g}), expected weights of at least 0."
        )


def _weights_of(mask: Any, operation: str, x: Array, axes: tuple[int, ...]) -> Array:
    """The mask in float64, broadcast to x's shape with size 1 along the channel axes."""
    array = plain_array(mask, operation, "mask")
    target = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    check_mask(operation, array.shape, array.dtype, target, x.shape, axes)
    weights: Array = np.broadcast_to(array, target).astype(np.float64)
    check_weights(operation, weights)
    return weights


def as_mask(weights: Array, plan: Plan) -> Array:
    """Such weights in the order of x's axes, of size 1 along the channels."""
    order = weight_order(plan.view, len(plan.shape))
    return weights.reshape(weight_sizes(plan.view, plan.shape)).transpose(np.argsort(order))


# ------------------------------------------------------------------------------------------------------- results


def same_memory(a: Array, b: Array) -> bool:
    """Whether two arrays are the same elements at the same addresses."""
    return a is b or (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.shape == b.shape
        and a.dtype == b.dtype
        and all(s == t for n, s, t in zip(a.shape, a.strides, b.strides, strict=True) if n > 1)
    )


def overlapping(a: Array, b: Array) -> bool:
    """Whether two arrays share an element; True where that is too expensive to find out."""
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


def overlapping_itself(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether two indices of such an array name the same element, as in a broadcast array."""
    reach = 0
    for size, stride in sorted(zip(shape, strides, strict=True), key=lambda pair: abs(pair[1])):
        if size > 1:
            if abs(stride) < max(reach, itemsize):
                return True
            reach = max(reach, abs(stride) * size)
    return False
