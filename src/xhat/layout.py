"""From shape, strides and channel axis to a view (outer, channel, inner). Only this file distinguishes NCHW and NHWC.

No arithmetic on elements lives here, and no dtype. A view lists the axes that are walked outside the channels and
those inside. Each group must have a single stride, so that three strides describe the whole array:

    NCHW contiguous   outer N      channel C   inner H*W       strides (C*H*W, H*W, 1)
    NHWC (or strides) outer N*H*W  channel C   inner 1         strides (C, 1, 1)
"""

import operator
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import NamedTuple

from xhat.errors import ShapeError

__all__ = [
    "Strides",
    "View",
    "canonical",
    "channel_axes",
    "strides_on",
    "view_of",
    "walk",
    "weight_order",
    "weight_sizes",
]

Strides = tuple[int, int, int]  # of (outer, channel, inner), in elements


class View(NamedTuple):
    """Sizes of (outer, channel, inner), and the axes that each group takes, slowest first."""

    shape: tuple[int, int, int]
    outer: tuple[int, ...]
    channel: tuple[int, ...]
    inner: tuple[int, ...]


def channel_axes(ndim: int, axis: int | tuple[int, ...], operation: str) -> tuple[int, ...]:
    """The channel axes, non-negative and ascending. Raises ShapeError for an axis that x does not have."""
    if type(axis) is int and 0 <= axis < ndim:
        return (axis,)
    try:
        given = [operator.index(a) for a in (axis if isinstance(axis, tuple) else (axis,))]
    except TypeError:
        raise ShapeError(f"{operation}: axis is {axis!r}, expected an int or a tuple of ints.") from None
    if not given:
        raise ShapeError(f"{operation}: axis is empty, expected at least one channel axis.")
    if ndim == 0:
        raise ShapeError(f"{operation}: x is a scalar, expected an array with a channel axis.")
    if any(not -ndim <= a < ndim for a in given):
        raise ShapeError(
            f"{operation}: axis {axis!r} does not exist in x of {ndim} dimension{'s' * (ndim != 1)}, "
            f"expected {-ndim} to {ndim - 1}."
        )
    found = tuple(sorted(a % ndim for a in given))
    if len(set(found)) < len(found):
        raise ShapeError(f"{operation}: axis {axis!r} names an axis twice, expected distinct axes.")
    return found


def _stride(axes: Sequence[int], shape: Sequence[int], strides: Sequence[int]) -> int | None:
    """The one stride that walks these axes, slowest first, or None when there is no such stride."""
    kept = [a for a in axes if shape[a] != 1]
    if not kept:
        return 1
    if all(strides[a] == strides[b] * shape[b] for a, b in pairwise(kept)):
        return strides[kept[-1]]
    return None


def view_of(shape: tuple[int, ...], strides: tuple[int, ...], channels: tuple[int, ...]) -> View | None:
    """The view that walks an array of these strides without a copy, or None when only a copy can."""
    if any(strides[a] == 0 and shape[a] > 1 for a in range(len(shape))):
        return None  # a broadcast axis: its order in memory is undefined
    long = sorted((a for a in range(len(shape)) if shape[a] != 1), key=lambda a: -abs(strides[a]))
    places = [i for i, a in enumerate(long) if a in channels]
    if places:
        first, last = places[0], places[-1]
    else:  # one channel in all: everything is inside it
        first, last = 0, -1
    channel = tuple(long[first : last + 1])
    if channel != tuple(a for a in channels if shape[a] != 1):
        return None  # another axis lies between the channels, or they are in another order
    view = _view(shape, tuple(long[:first]), channel, tuple(long[last + 1 :]))
    return view if strides_on(view, shape, strides) else None


def _view(
    shape: tuple[int, ...], outer: tuple[int, ...], channel: tuple[int, ...], inner: tuple[int, ...]
) -> View:
    sizes = (prod(shape[a] for a in outer), prod(shape[a] for a in channel), prod(shape[a] for a in inner))
    return View(sizes, outer, channel, inner)


def strides_on(view: View, shape: tuple[int, ...], strides: tuple[int, ...]) -> Strides | None:
    """The strides (outer, channel, inner) of an array walked by this view, or None when it needs a copy first."""
    outer = _stride(view.outer, shape, strides)
    channel = _stride(view.channel, shape, strides)
    inner = _stride(view.inner, shape, strides)
    if outer is None or channel is None or inner is None:
        return None
    return outer, channel, inner


def walk(
    shape: tuple[int, ...], memory: tuple[int, ...], unit: int, channels: tuple[int, ...]
) -> tuple[View, Strides | None]:
    """How an array is walked: a view, and the array's strides on it.

    memory: the strides of the array. unit: how much of them is one element (NumPy counts bytes, PyTorch elements); 0
    if the elements are misaligned. If no view walks the array, its strides are None, and the view is one for a copy: in
    the array's own order of axes, or, if no view walks that either, the canonical one.
    """
    strides = None if unit == 0 or any(s % unit for s in memory) else tuple(s // unit for s in memory)
    if strides is not None and (view := view_of(shape, strides, channels)) is not None:
        return view, strides_on(view, shape, strides)
    # Of a broadcast axis, PyTorch's copies keep the place, while NumPy's have it innermost.
    broadcast = unit == 1 and any(s == 0 and n > 1 for s, n in zip(memory, shape, strict=True))
    own = None if broadcast else view_of(shape, _dense_strides(shape, memory), channels)
    return own or canonical(shape, channels), None


def _dense_strides(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a dense copy whose axes have the order of these strides, as numpy.empty_like makes it."""
    step, found = 1, dict.fromkeys(range(len(shape)), 1)
    for axis in sorted(range(len(shape)), key=lambda a: -abs(strides[a]))[::-1]:
        found[axis] = step
        step *= shape[axis]
    return tuple(found.values())


def canonical(shape: tuple[int, ...], channels: tuple[int, ...]) -> View:
    """The view for a copy: axes before the first channel axis outside, the others inside, each in its order."""
    others = [a for a in range(len(shape)) if a not in channels]
    outer = tuple(a for a in others if a < channels[0])
    return _view(shape, outer, channels, tuple(a for a in others if a > channels[0]))


def weight_order(view: View, ndim: int) -> tuple[int, ...]:
    """The axes in the order in which the kernels read weights; those along which a mask has size 1 come first."""
    walked = view.outer + view.inner
    return tuple(a for a in range(ndim) if a not in walked) + walked


def weight_sizes(view: View, shape: tuple[int, ...]) -> list[int]:
    """The size of weights along each axis of `weight_order`."""
    walked = view.outer + view.inner
    return [shape[a] if a in walked else 1 for a in weight_order(view, len(shape))]
