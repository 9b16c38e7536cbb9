"""Preallocated results: the same bits as fresh ones, in the place given and nowhere else, and in place."""

from typing import Any

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, DTYPES, EPSILON, LAYOUTS, Array, Layout

import xhat
from xhat.errors import ContextError, OutputError

# Where a result can be written: all but the broadcast view.
PLACES = [name for name, layout in LAYOUTS.items() if layout.empty(np.float32).flags.writeable]
FOUR = [name for name in PLACES if LAYOUTS[name].shape == LAYOUTS["NCHW"].shape]


def gaps_of(layout: Layout) -> Array:
    """Which elements of the buffer the view skips."""
    buffer = np.ones(layout.buffer, np.bool_)
    layout.view(buffer)[...] = False
    return buffer


def same(a: Array, b: Array, layout: Layout) -> bool:
    """The same bits; where a copy is needed, it may run in wider arithmetic, and the last digit differ."""
    if layout.copied:
        return bool(
            np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=2 * EPSILON[a.dtype.name], atol=1e-6)
        )
    return np.array_equal(a, b)


def placed(layout: Layout, dtype: Any = np.float32) -> tuple[Array, Array]:
    """A buffer of NaN, and the view of it."""
    buffer = np.full(layout.buffer, np.nan, dtype)
    return buffer, layout.view(buffer)


@pytest.mark.parametrize("where", FOUR)
@pytest.mark.parametrize("lies", ["NCHW", "NHWC", "cropped", "every other channel"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_results_go_where_they_are_told_and_nowhere_else(where: str, lies: str, activation: Any) -> None:
    """Whatever the strides of x and of the result."""
    layout, x = LAYOUTS[where], LAYOUTS[lies].array("x", np.float32)
    dy, residual = (LAYOUTS[lies].array(seed, np.float32) for seed in ("dy", "residual"))
    expected, context = xhat.batch_norm(x, residual=residual, activation=activation)
    gradients = xhat.batch_norm_backward(dy, context)
    (y_buffer, y), (dx_buffer, dx), (r_buffer, dr) = (placed(layout) for _ in range(3))
    got, context = xhat.batch_norm(x, residual=residual, activation=activation, out=y)
    grads = xhat.batch_norm_backward(dy, context, out=(dx, dr))
    assert got is y
    assert grads.dx is dx
    assert grads.dresidual is dr
    for a, b in ((y, expected), (dx, gradients.dx), (dr, gradients.dresidual)):
        assert np.allclose(a, b, rtol=1e-6, atol=1e-6)
    for buffer in (y_buffer, dx_buffer, r_buffer):
        assert np.isnan(buffer[gaps_of(layout)]).all()


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_y_over_x_has_the_same_bits(where: str, name: str) -> None:
    layout = LAYOUTS[where]
    buffer, x = placed(layout, DTYPES[name])
    x[...] = layout.array("x", DTYPES[name])
    expected, context = xhat.batch_norm(x, axis=layout.axis, activation="silu")
    normalized = xhat.normalize(x, context.mean, context.var, axis=layout.axis)
    again = x.copy()
    got, context = xhat.batch_norm(x, axis=layout.axis, activation="silu", out=x)
    assert got is x
    assert same(x, expected, layout)
    assert np.isnan(buffer[gaps_of(layout)].astype(np.float32)).all()
    with pytest.raises(ContextError, match="wrote y over x"):
        xhat.batch_norm_backward(x, context)
    x[...] = again
    assert same(xhat.normalize(x, context.mean, context.var, axis=layout.axis, out=x), normalized, layout)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_dx_over_dy_has_the_same_bits(where: str, name: str, activation: Any) -> None:
    layout = LAYOUTS[where]
    residual = layout.array("residual", DTYPES[name])
    _, context = xhat.batch_norm(
        layout.array("x", DTYPES[name]), axis=layout.axis, activation=activation, residual=residual
    )
    buffer, dy = placed(layout, DTYPES[name])
    dy[...] = layout.array("dy", DTYPES[name])
    expected = xhat.batch_norm_backward(dy, context)
    grads = xhat.batch_norm_backward(dy, context, out=dy)
    assert grads.dx is dy
    assert same(dy, expected.dx, layout)
    assert same(grads.dresidual, expected.dresidual, layout)
    assert np.isnan(buffer[gaps_of(layout)].astype(np.float32)).all()


def test_a_place_for_dresidual_alone() -> None:
    x, residual, dy = (LAYOUTS["NCHW"].array(seed, np.float32) for seed in ("x", "residual", "dy"))
    _, context = xhat.batch_norm(x, residual=residual, activation="silu")
    dresidual = np.empty_like(x)
    grads = xhat.batch_norm_backward(dy, context, out=(None, dresidual))
    assert grads.dresidual is dresidual
    assert np.array_equal(dresidual, xhat.batch_norm_backward(dy, context).dresidual)


@pytest.mark.parametrize("shape", [(9, 33, 127, 131), (40, 16, 81, 83)])
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "NHWC"])
def test_results_too_large_for_the_caches(shape: tuple[int, ...], last: bool, monkeypatch: Any) -> None:
    """They are written past the caches, at every alignment; the sums in the reference are float64 here."""
    monkeypatch.setattr(oracle, "WIDE", np.float64)
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, *shape), np.float32)
    if last:
        x, dy = (np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in (x, dy))
    axis = -1 if last else 1
    expected = oracle.forward(x, axis=axis)
    y, context = xhat.batch_norm(x, axis=axis)
    assert oracle.worst(y, expected.y) <= 2e-6
    shifted = np.empty(y.size + 1, np.float32)[1:].reshape(y.shape)
    assert np.array_equal(xhat.batch_norm(x, axis=axis, out=shifted)[0], y)
    dx = xhat.batch_norm_backward(dy, context, out=shifted).dx
    assert oracle.worst(dx, oracle.backward(dy, x, axis=axis).dx) <= 5e-6
    xhat.batch_norm_backward(dy, context, out=dy)
    assert np.array_equal(dy, dx)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(2, 8), (4, 4), (2, 2, 4), (4, 8), (8, 16), (3, 16, 3)])
def test_a_result_smaller_than_a_cache_line_at_every_alignment(shape: tuple[int, ...], name: str) -> None:
    """The rows of a map start where a cache line does, if there is one in the first row."""
    dtype = DTYPES[name]
    x, dy = np.random.default_rng(0).normal(size=(2, *shape)).astype(dtype)
    y, context = xhat.batch_norm(x)
    dx = xhat.batch_norm_backward(dy, context).dx
    for start in range(64):
        buffer = np.full(x.size + 192, 7, dtype)
        place = buffer[64 + start : 64 + start + x.size].reshape(shape)
        for result in (y, dx):
            if result is y:
                xhat.batch_norm(x, out=place)
            else:
                xhat.batch_norm_backward(dy, context, out=place)
            assert np.array_equal(place, result)
            assert (buffer[: 64 + start] == 7).all()
            assert (buffer[64 + start + x.size :] == 7).all()


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_result_that_overlaps_an_input_otherwise_is_refused(step: int) -> None:
    room = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    x, beside = room[:360].reshape(9, 40), room[step : 360 + step].reshape(9, 40)
    _, context = xhat.batch_norm(x)
    dy = x.copy()
    calls = [
        lambda: xhat.batch_norm(x, out=beside),
        lambda: xhat.batch_norm(x, out=x[::-1]),
        lambda: xhat.batch_norm(x, out=x.reshape(40, 9).T),
        lambda: xhat.batch_norm(dy, residual=x, out=x),
        lambda: xhat.normalize(x, context.mean, context.var, out=beside),
        lambda: xhat.batch_norm_backward(dy, context, out=x),
        lambda: xhat.batch_norm_backward(dy, context, out=beside),
        lambda: xhat.batch_norm_backward(beside, context, out=x),
        lambda: xhat.batch_norm(x, out=np.lib.stride_tricks.as_strided(dy, (9, 40), (4, 4))),
    ]
    before = room.copy(), dy.copy()
    for call in calls:
        with pytest.raises(OutputError, match="overlaps"):
            call()
    assert np.array_equal(room, before[0])
    assert np.array_equal(dy, before[1])


@pytest.mark.parametrize("again", [False, True])
def test_a_result_over_the_statistics_of_its_context_is_refused(again: bool) -> None:
    """They are read while dx is written."""
    x, dy = np.random.default_rng(0).normal(size=(2, 2, 5000, 2))
    if again:
        xhat.batch_norm_backward(dy, xhat.batch_norm(x)[1], out=np.empty_like(x))
    _, context = xhat.batch_norm(x)
    before = context.statistics.copy()
    with pytest.raises(OutputError, match="overlaps the context's statistics"):
        xhat.batch_norm_backward(dy, context, out=context.statistics.reshape(x.shape))
    assert np.array_equal(context.statistics, before)


def test_the_stride_of_an_axis_with_one_number_does_not_matter() -> None:
    """It leads nowhere, and y over x is y over x."""
    a = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    x, out = a.reshape(6, 5, 1), a[..., None]
    expected, _ = xhat.batch_norm(x)
    assert x.strides != out.strides
    assert np.array_equal(xhat.batch_norm(x, out=out)[0], expected)
    _, context = xhat.batch_norm(expected)
    dx = xhat.batch_norm_backward(x, context).dx
    assert np.array_equal(xhat.batch_norm_backward(x, context, out=out).dx, dx)


def test_interleaved_results_do_not_overlap() -> None:
    """Every other number is x's, the ones between are y's: no number is shared."""
    room = np.zeros((9, 40), np.float32)
    x, y = room[:, ::2], room[:, 1::2]
    x[...] = np.random.default_rng(0).normal(size=x.shape)
    expected, _ = xhat.batch_norm(x.copy())
    xhat.batch_norm(x, out=y)
    assert np.allclose(y, expected, atol=1e-6)


def test_memory_that_is_too_hard_to_tell_apart_is_taken_for_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_hard(*_: Any, **__: Any) -> bool:
        raise np.exceptions.TooHardError

    room = np.random.default_rng(0).normal(size=(6, 10))
    xhat.batch_norm(room[:, ::2], out=room[:, 1::2])
    monkeypatch.setattr(np, "shares_memory", too_hard)
    with pytest.raises(OutputError, match="out overlaps x"):
        xhat.batch_norm(room[:, ::2], out=room[:, 1::2])
