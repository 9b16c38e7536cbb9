"""Drawn inputs: what is right agrees with the oracle, what is wrong is refused by a class of xhat.errors.

A crash of the interpreter ends the run, which is the third claim. `--hypothesis-profile=explore` draws more.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import DTYPES, EPSILON, Array
from hypothesis import assume, given
from hypothesis import strategies as st

import xhat
from xhat.errors import XhatError

SIZES = [0, 1, 1, 2, 3, 5, 8, 17]


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...] | None = None, dtype: Any = None) -> Array:
    """Normal numbers in a view with steps, reversals and any order of axes; or repeated along an axis."""
    if shape is None:
        shape = tuple(draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=4)))
    dtype = dtype or DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2])) for _ in shape]
    edge = [draw(st.sampled_from([0, 0, 0, 1])) for _ in shape]
    order = draw(st.permutations(range(len(shape))))
    buffer = np.full([n * abs(s) + 2 * e for n, s, e in zip(shape, steps, edge, strict=True)], np.nan, dtype)
    buffer = np.ascontiguousarray(buffer.transpose(order)).transpose(
        np.argsort(order)
    )  # another order in memory
    view = buffer[tuple(slice(e, n - e) for n, e in zip(buffer.shape, edge, strict=True))]
    view = view[tuple(slice(None, None, s) for s in steps)]
    assert view.shape == shape
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    view[...] = rng.normal(size=shape) * draw(st.sampled_from([1, 1, 5])) + draw(st.sampled_from([0, 0, 3]))
    if draw(st.integers(0, 9)) == 0 and 0 not in shape:
        return np.broadcast_to(view[:1], shape)
    return view


@st.composite
def masks(draw: st.DrawFn, shape: tuple[int, ...], channels: set[int]) -> Array | None:
    """Bool or weights, 1 along the channels and along any other axes; leading axes of 1 may be left out."""
    if draw(st.booleans()):
        return None
    sizes = [1 if a in channels or draw(st.booleans()) else n for a, n in enumerate(shape)]
    while sizes and sizes[0] == 1 and draw(st.booleans()):
        sizes.pop(0)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    keep = rng.random(sizes) < draw(st.sampled_from([0.5, 0.9, 1]))
    kind = draw(st.sampled_from(["bool", "float32", "float64"]))
    return keep if kind == "bool" else (keep * rng.uniform(0.1, 4, sizes)).astype(kind)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Array, dict[str, Any]]:
    """x, and arguments that fit it."""
    x = draw(arrays())
    channels = draw(st.sets(st.integers(0, x.ndim - 1), min_size=1, max_size=2))
    axis: Any = tuple(a - x.ndim if draw(st.booleans()) else a for a in channels)
    axis = axis[0] if len(axis) == 1 and draw(st.booleans()) else axis
    sizes = tuple(x.shape[a] for a in sorted(channels))
    wider = [d for d in DTYPES.values() if d == x.dtype or d.itemsize > x.dtype.itemsize]
    arguments: dict[str, Any] = {
        "axis": axis,
        "eps": draw(st.sampled_from([1e-5, 1e-3, 1.0])),
        "correction": draw(st.sampled_from([0, 1])),
        "mask": draw(masks(x.shape, channels)),
        "activation": draw(st.sampled_from([None, None, "relu", ("leaky_relu", 0.2), "silu"])),
    }
    for name in ("gamma", "beta"):
        arguments[name] = draw(st.none() | arrays(shape=sizes, dtype=draw(st.sampled_from(wider))))
    arguments["residual"] = draw(st.none() | arrays(shape=x.shape, dtype=x.dtype))
    return x, arguments


def largest(a: Any) -> float:
    """max |a|, 0 for none; the moments of an empty batch are NaN and do not count."""
    return float(np.nanmax(np.abs(oracle.wide(a)), initial=0))


def near(got: Any, expected: Array, dtype: Any, scale: float) -> bool:
    """Within a few roundings of the terms that were added."""
    bound = max(scale, largest(expected))
    return oracle.worst(got, expected) <= 8 * EPSILON[np.dtype(dtype).name] * bound


@given(calls(), st.data())
def test_what_fits_agrees_with_the_oracle(call: tuple[Array, dict[str, Any]], data: st.DataObject) -> None:
    x, arguments = call
    m = oracle.moments(x, axis=arguments["axis"], mask=arguments["mask"]).m
    try:
        y, context = xhat.batch_norm(x, **arguments)
    except xhat.errors.DegenerateBatchError:
        spread = oracle.weights_of(x, arguments["mask"])
        others = oracle.axes_of(x, arguments["axis"])[1]
        assert x.size > 0
        assert m <= arguments["correction"] or int((spread > 0).sum(axis=others).max()) <= 1
        return
    assume(x.size == 0 or m > arguments["correction"] + 0.01)  # else rounding is all that is left of m - c
    expected = oracle.forward(x, **arguments)
    top = largest(expected.pre) + largest(x)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert near(y, expected.y, x.dtype, top)
    dy = data.draw(arrays(shape=x.shape, dtype=x.dtype))
    dy = np.where(np.abs(expected.pre) < 0.05, 0, dy).astype(x.dtype) if arguments["activation"] else dy
    grads, gradients = xhat.batch_norm_backward(dy, context), oracle.backward(dy, x, **arguments)
    size = largest(dy) * max(1, x.size)
    assert (grads.dx.shape, grads.dx.dtype) == (x.shape, x.dtype)
    steep = max(1, largest(expected.rstd)) * (1 + top)
    assert near(grads.dx, gradients.dx, x.dtype, size * steep)
    for name in ("gamma", "beta"):
        got = getattr(grads, f"d{name}")
        assert (got is None) == (arguments[name] is None)
        if got is not None:
            assert got.dtype == arguments[name].dtype
            coarser = (
                got.dtype if x.dtype == np.float64 or got.dtype.itemsize < 4 else np.float32
            )  # of act'(pre)
            assert near(got, getattr(gradients, f"d{name}"), coarser, size * steep)


@given(calls())
def test_moments_agree_and_merge(call: tuple[Array, dict[str, Any]]) -> None:
    x, arguments = call
    same = {"axis": arguments["axis"], "mask": arguments["mask"]}
    try:
        got = xhat.moments(x, **same)
    except XhatError:
        assert x.size == 0 or oracle.moments(x, **same).m == 0
        return
    expected = oracle.moments(x, **same)
    assert got.count == pytest.approx(float(expected.m), rel=1e-12)
    if expected.m > 0:
        scale = largest(x)
        assert near(got.mean, expected.mean, np.float64, scale)
        assert near(got.m2, expected.m2, np.float64, scale**2 * float(expected.m))


OTHER_DTYPES = ["?", "i1", "u2", "i8", ">f4", "c8", "c16", "longdouble", "O", "S", "U", "m8[s]", "M8[s]"]
ANYTHING = st.one_of(
    st.none(),
    st.integers(-9, 9),
    st.floats(),
    st.text(max_size=3),
    st.tuples(st.integers(-5, 5)),
    st.tuples(st.integers(-5, 5), st.integers(-5, 5)),
    st.tuples(st.just("leaky_relu"), st.floats()),
    st.sampled_from(["relu", "silu", True, 1e400, b"", 2j, [], {}]),
    arrays(),
    st.builds(
        lambda a, d: np.nan_to_num(a.astype(np.float64)).astype(d), arrays(), st.sampled_from(OTHER_DTYPES)
    ),
)
NAMES = ("gamma", "beta", "axis", "eps", "correction", "mask", "residual", "activation", "out")


def taken_or_refused(operation: str, call: Callable[[], Any]) -> Any:
    """What the call gives; or None, when it was refused in a sentence that starts with the operation."""
    try:
        return call()
    except XhatError as error:
        sentence = str(error)
    assert sentence.startswith(f"{operation}: ")
    assert sentence.endswith(".")
    return None


@given(calls(), st.dictionaries(st.sampled_from(NAMES), ANYTHING, min_size=1, max_size=2))
def test_any_argument_may_be_anything(call: tuple[Array, dict[str, Any]], wrong: dict[str, Any]) -> None:
    x, arguments = call
    result = taken_or_refused("batch_norm", lambda: xhat.batch_norm(x, **{**arguments, **wrong}))
    if result is not None:
        taken_or_refused("batch_norm_backward", lambda: xhat.batch_norm_backward(x, result[1]))


@given(ANYTHING, ANYTHING, ANYTHING)
def test_any_x_and_any_moments_are_taken_or_refused(x: Any, mean: Any, var: Any) -> None:
    taken_or_refused("batch_norm", lambda: xhat.batch_norm(x))
    taken_or_refused("moments", lambda: xhat.moments(x))
    taken_or_refused("normalize", lambda: xhat.normalize(x, mean, var))


@given(calls(), ANYTHING, ANYTHING)
def test_any_dy_and_out_are_taken_or_refused(call: tuple[Array, dict[str, Any]], dy: Any, out: Any) -> None:
    x, arguments = call
    result = taken_or_refused("batch_norm", lambda: xhat.batch_norm(x, **arguments))
    taken_or_refused("batch_norm_backward", lambda: xhat.batch_norm_backward(x, dy))
    if result is not None:
        taken_or_refused("batch_norm_backward", lambda: xhat.batch_norm_backward(dy, result[1], out=out))
        taken_or_refused("gradient_paths", lambda: xhat.gradient_paths(dy, result[1]))
