"""How arrays meet the kernels: which view walks x, and which arrays have to be copied for it.

No value is computed here.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from xhat import layout
from xhat.checks import Array
from xhat.layout import View

__all__ = ["Operand", "read", "steps_of", "view_for", "write"]


def _in_elements(strides: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    return None if any(s % size for s in strides) else tuple(s // size for s in strides)


def _steps(array: Array, view: View) -> tuple[int, int, int] | None:
    """The strides that walk the array, None where they don't, or where elements lie askew."""
    return _steps_on(view, array.shape, array.strides, array.itemsize) if array.flags.aligned else None


@lru_cache(maxsize=4096)
def _steps_on(
    view: View, shape: tuple[int, ...], strides: tuple[int, ...], size: int
) -> tuple[int, int, int] | None:
    elements = _in_elements(strides, size)
    return None if elements is None else layout.strides_on(view, shape, elements)


def view_for(x: Array, channels: tuple[int, ...]) -> View:
    """The view of x, or else of a copy in x's order of axes, or else of a copy in an order that has one."""
    view = _view_of(x.shape, x.strides, x.itemsize, channels) if x.flags.aligned else None
    if view is not None:
        return view
    copy = np.empty_like(x)
    return _view_of(x.shape, copy.strides, x.itemsize, channels) or layout.canonical(x.shape, channels)


@lru_cache(maxsize=4096)
def _view_of(
    shape: tuple[int, ...], strides: tuple[int, ...], size: int, channels: tuple[int, ...]
) -> View | None:
    elements = _in_elements(strides, size)
    return None if elements is None else layout.view_of(shape, elements, channels)


def _dense(like: Array, view: View) -> Array:
    """A new array of this shape and dtype that the view walks."""
    named = view.outer + view.channel + view.inner
    order = tuple(a for a in range(like.ndim) if a not in named) + named
    return np.empty([like.shape[a] for a in order], like.dtype).transpose(np.argsort(order))


# An array as the kernels take it: a buffer and its strides on the view.
Operand = tuple[Array, tuple[int, int, int]]


def _operand(array: Array, strides: tuple[int, int, int]) -> Operand:
    return (array.view(np.uint16) if array.dtype.kind == "V" else array), strides


def read(array: Array | None, view: View) -> Operand | None:
    """An input, copied once where the view can't walk it."""
    if array is None:
        return None
    strides = _steps(array, view)
    if strides is None:
        copy = _dense(array, view)
        copy[...] = array
        return read(copy, view)
    return _operand(array, strides)


def write(array: Array, view: View) -> tuple[Operand, Array]:
    """A result, and the array that receives it: another one where the view can't walk the caller's."""
    strides = _steps(array, view)
    if strides is not None:
        return _operand(array, strides), array
    place = _dense(array, view)
    return write(place, view)


def steps_of(
    arrays: Sequence[Array | None], operands: Sequence[Operand | None]
) -> list[tuple[int, int, int] | None] | None:
    """The strides on the view of each operand; None where one of them is not the array itself."""
    for array, operand in zip(arrays, operands, strict=True):
        if operand is not None and operand[0] is not array:
            return None
    return [None if operand is None else operand[1] for operand in operands]
