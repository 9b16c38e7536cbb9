"""Views: they walk exactly the values of the array, channel by channel, and exist wherever they can."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from conftest import LAYOUTS, Layout
from hypothesis import given
from hypothesis import strategies as st

from xhat.errors import ShapeError
from xhat.layout import View, canonical, channel_axes, strides_on, view_of

Array = np.ndarray[Any, np.dtype[Any]]
Places = list[tuple[int, ...]]


def places_of(a: Array, channels: tuple[int, ...]) -> Places:
    """The offset of every value, sorted within each channel; the channels in their order."""
    others = tuple(i for i in range(a.ndim) if i not in channels)

    def at(axes: tuple[int, ...]) -> list[int]:
        return [
            sum(i * a.strides[x] for i, x in zip(index, axes, strict=True))
            for index in product(*(range(a.shape[x]) for x in axes))
        ]

    return [tuple(sorted(c + o for o in at(others))) for c in at(channels)]


def places_on(view: View, strides: tuple[int, int, int]) -> Places:
    """The offsets that (outer, channel, inner) walks."""
    outer, channel, inner = view.shape
    return [
        tuple(
            sorted(
                o * strides[0] + c * strides[1] + i * strides[2] for o in range(outer) for i in range(inner)
            )
        )
        for c in range(channel)
    ]


def test_a_view_walks_the_array(layout: Layout) -> None:
    a = layout.empty(np.float32)
    channels = channel_axes(a.ndim, layout.axis, "test")
    view = view_of(a.shape, a.strides, channels)
    assert (view is None) == layout.copied
    if view is not None:
        strides = strides_on(view, a.shape, a.strides)
        assert strides is not None
        assert places_on(view, strides) == places_of(a, channels)


@pytest.mark.parametrize(
    ("name", "shape", "strides"),
    [
        ("NCHW", (3, 5, 28), (140, 28, 1)),
        ("NHWC", (84, 5, 1), (5, 1, 1)),
        ("NHWC, axis -1", (84, 5, 1), (5, 1, 1)),
        ("(N, C)", (37, 5, 1), (5, 1, 1)),
        ("(N, C, L)", (3, 5, 11), (55, 11, 1)),
        ("channel first", (1, 5, 33), (1, 33, 1)),
        ("two channel axes", (3, 10, 7), (70, 7, 1)),
        ("every other value", (3, 5, 11), (110, 22, 2)),
        ("channels reversed", (3, 5, 28), (140, -28, 1)),
    ],
)
def test_the_view_of_a_known_layout(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    a = LAYOUTS[name].empty(np.float64)
    view = view_of(a.shape, a.strides, channel_axes(a.ndim, LAYOUTS[name].axis, "test"))
    assert view is not None
    assert view.shape == shape
    assert strides_on(view, a.shape, tuple(s // a.itemsize for s in a.strides)) == strides


@st.composite
def strided(draw: st.DrawFn) -> tuple[Array, tuple[int, ...]]:
    """A view of a buffer with steps, reversals, an axis order, sizes of 1 and 0; and channel axes."""
    ndim = draw(st.integers(1, 5))
    shape = draw(st.lists(st.integers(0, 5), min_size=ndim, max_size=ndim))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, -1]), min_size=ndim, max_size=ndim))
    a = np.empty([n * abs(step) for n, step in zip(shape, steps, strict=True)], np.int16)
    a = a[tuple(slice(None, None, step) for step in steps)].transpose(draw(st.permutations(range(ndim))))
    return a, tuple(sorted(draw(st.sets(st.integers(0, ndim - 1), min_size=1))))


@given(strided())
def test_any_view_walks_its_array(drawn: tuple[Array, tuple[int, ...]]) -> None:
    a, channels = drawn
    view = view_of(a.shape, a.strides, channels)
    if view is not None and a.size:
        strides = strides_on(view, a.shape, a.strides)
        assert strides is not None
        assert places_on(view, strides) == places_of(a, channels)


@given(strided())
def test_a_copy_has_the_canonical_view(drawn: tuple[Array, tuple[int, ...]]) -> None:
    """Axes before the channels outside, the others inside; the sizes are those of the array."""
    a, channels = drawn
    view = canonical(a.shape, channels)
    assert sorted(view.outer + view.channel + view.inner) == list(range(a.ndim))
    assert np.prod(view.shape) == a.size
    assert view.shape[1] == np.prod([a.shape[c] for c in channels])
    order = view.outer + view.channel + view.inner
    copy = np.ascontiguousarray(a.transpose(order)).transpose(np.argsort(order))
    if a.size:
        strides = strides_on(view, copy.shape, copy.strides)
        assert strides is not None
        assert places_on(view, strides) == places_of(copy, channels)


def test_another_array_may_be_walked_by_the_same_view_with_its_own_strides() -> None:
    a, other = LAYOUTS["NCHW"].empty(np.float32), LAYOUTS["every other channel"].empty(np.float32)
    view = view_of(a.shape, a.strides, (1,))
    assert view is not None
    assert strides_on(view, other.shape, other.strides) == (10 * 28 * 4, 2 * 28 * 4, 4)
    assert strides_on(view, a.shape, LAYOUTS["NHWC"].empty(np.float32).strides) == (4 * 7 * 5 * 4, 4, 5 * 4)
    assert strides_on(view, a.shape, LAYOUTS["cropped"].empty(np.float32).strides) is None


@pytest.mark.parametrize(
    ("ndim", "axis", "expected"),
    [
        (4, 1, (1,)),
        (4, -1, (3,)),
        (4, -4, (0,)),
        (4, (-1, 1), (1, 3)),
        (1, 0, (0,)),
        (3, (2, 0, 1), (0, 1, 2)),
    ],
)
def test_channel_axes(ndim: int, axis: Any, expected: tuple[int, ...]) -> None:
    assert channel_axes(ndim, axis, "batch_norm") == expected


@pytest.mark.parametrize(
    ("ndim", "axis", "sentence"),
    [
        (2, 2, "batch_norm: axis 2 does not exist in x of 2 dimensions, expected -2 to 1."),
        (1, -2, "batch_norm: axis -2 does not exist in x of 1 dimension, expected -1 to 0."),
        (0, 0, "batch_norm: x is a scalar, expected an array with a channel axis."),
        (4, (1, -3), "batch_norm: axis (1, -3) names an axis twice, expected distinct axes."),
        (4, (), "batch_norm: axis is empty, expected at least one channel axis."),
        (4, 1.0, "batch_norm: axis is 1.0, expected an int or a tuple of ints."),
        (4, ("1",), "batch_norm: axis is ('1',), expected an int or a tuple of ints."),
        (4, None, "batch_norm: axis is None, expected an int or a tuple of ints."),
    ],
)
def test_axes_that_x_does_not_have(ndim: int, axis: Any, sentence: str) -> None:
    with pytest.raises(ShapeError) as raised:
        channel_axes(ndim, axis, "batch_norm")
    assert str(raised.value) == sentence
