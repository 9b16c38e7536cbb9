"""Every error, word for word: what was asked for, what it got, what it expected, and what would help."""

from typing import Any

import numpy as np
import pytest

import xhat
from xhat import errors, ops
from xhat.numpy import BatchNorm

X = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(np.float32)
WIDE = X.astype(np.float64)
C3, C4 = np.ones(3, np.float32), np.ones(4, np.float32)
READ_ONLY = np.broadcast_to(np.float32(0), X.shape)
LOCKED = X.copy()
LOCKED.flags.writeable = False
SWAPPED = X.astype(X.dtype.newbyteorder())
REPEATED = np.lib.stride_tricks.as_strided(X.copy(), X.shape, (0, 20, 4))

NUMBERS = "expected float64, float32, float16 or bfloat16."
REAL = "Only real floating-point numbers have a batch norm here."
PREALLOCATED = "expected (8, 3, 5) and float32, those of x."

# x, the other arguments of batch_norm, the class, and the sentence after "batch_norm: ".
FORWARD: list[tuple[Any, dict[str, Any], type[errors.XhatError], str]] = [
    # x
    (X.astype(np.int64), {}, errors.DtypeError,
     f"x has dtype int64, {NUMBERS} Convert it first, for example x.astype(np.float32)."),
    (X > 0, {}, errors.DtypeError,
     f"x has dtype bool, {NUMBERS} Convert it first, for example x.astype(np.float32)."),
    (X.astype(np.complex64), {}, errors.DtypeError, f"x has dtype complex64, {NUMBERS} {REAL}"),
    (X.astype(object), {}, errors.DtypeError, f"x has dtype object, {NUMBERS} {REAL}"),
    (None, {}, errors.DtypeError, f"x has dtype object, {NUMBERS} {REAL}"),
    (SWAPPED, {}, errors.DtypeError,
     f"x has the byte order of another machine ({SWAPPED.dtype.str}), expected the native one. "
     'Convert it with x.astype(x.dtype.newbyteorder("=")).'),
    (np.ma.masked_array(X, X > 1), {}, errors.DtypeError,
     "x is a masked array, expected one without a mask. Pass x.data; mask=~x.mask, of size 1 along "
     "the channels, keeps values out of the statistics."),
    (np.float32(1), {}, errors.ShapeError, "x is a scalar, expected an array with a channel axis."),
    # axis
    (X, {"axis": 3}, errors.ShapeError, "axis 3 does not exist in x of 3 dimensions, expected -3 to 2."),
    (X, {"axis": (1, -4)}, errors.ShapeError,
     "axis (1, -4) does not exist in x of 3 dimensions, expected -3 to 2."),
    (C3, {}, errors.ShapeError, "axis 1 does not exist in x of 1 dimension, expected -1 to 0."),
    (X, {"axis": (1, 1)}, errors.ShapeError, "axis (1, 1) names an axis twice, expected distinct axes."),
    (X, {"axis": ()}, errors.ShapeError, "axis is empty, expected at least one channel axis."),
    (X, {"axis": "1"}, errors.ShapeError, "axis is '1', expected an int or a tuple of ints."),
    # parameters
    (X, {"gamma": C4}, errors.ShapeError, "gamma has shape (4,), expected (3,) to match axis 1 of x (8, 3, 5)."),
    (X, {"beta": C3[:, None]}, errors.ShapeError,
     "beta has shape (3, 1), expected (3,) to match axis 1 of x (8, 3, 5)."),
    (X, {"gamma": 1.0}, errors.ShapeError, "gamma has shape (), expected (3,) to match axis 1 of x (8, 3, 5)."),
    (X, {"gamma": C3, "axis": (1, 2)}, errors.ShapeError,
     "gamma has shape (3,), expected (3, 5) to match axes (1, 2) of x (8, 3, 5)."),
    (X, {"gamma": C3.astype(np.int64)}, errors.DtypeError,
     f"gamma has dtype int64, {NUMBERS} Convert it first, for example gamma.astype(np.float32)."),
    (WIDE, {"beta": C3}, errors.DtypeError,
     "beta has dtype float32, expected float64 for x of float64: parameters may be wider than x, not narrower."),
    (X, {"gamma": C3.astype(np.float16)}, errors.DtypeError,
     "gamma has dtype float16, expected float32 or float64 for x of float32: "
     "parameters may be wider than x, not narrower."),
    (X, {"gamma": np.ma.masked_array(C3)}, errors.DtypeError,
     "gamma is a masked array, expected one without a mask. Pass gamma.data or gamma.filled(0)."),
    # options
    *[(X, {"eps": eps}, errors.ArgumentError,
       f"eps is {eps!r}, expected a finite number above 0, such as 1e-5.")
      for eps in (0, -1e-5, np.nan, np.inf, None, "small")],
    *[(X, {"correction": correction}, errors.ArgumentError,
       f"correction is {correction!r}, expected 0 (divide by m) or 1 (divide by m - 1).")
      for correction in (2, -1, 0.5, None, "torch", True)],
    *[(X, {"activation": activation}, errors.ArgumentError,
       f'activation is {activation!r}, expected None, "relu", ("leaky_relu", slope) or "silu".')
      for activation in ("cubic", "leaky_relu", 1, ("leaky_relu",), ("relu", 0.1), ["leaky_relu", 0.1])],
    *[(X, {"activation": ("leaky_relu", slope)}, errors.ArgumentError,
       f"leaky_relu has slope {slope!r}, expected a finite number of at least 0.")
      for slope in (-0.1, np.nan, np.inf, None)],
    # residual
    (X, {"residual": X[:1]}, errors.ShapeError,
     "residual has shape (1, 3, 5), expected (8, 3, 5), the shape of x."),
    (X, {"residual": WIDE}, errors.DtypeError,
     "residual has dtype float64, expected float32, the dtype of x. Convert it with residual.astype(x.dtype)."),
    # mask
    (X, {"mask": np.ones((8, 3, 1))}, errors.ShapeError,
     "mask has shape (8, 3, 1), expected one that broadcasts to (8, 1, 5): "
     "x is (8, 3, 5), and a mask has size 1 along the channels."),
    (X, {"mask": np.ones((8, 5))}, errors.ShapeError,
     "mask has shape (8, 5), expected one that broadcasts to (8, 1, 5): "
     "x is (8, 3, 5), and a mask has size 1 along the channels. Pass mask[:, None]."),
    (X, {"mask": np.ones((8, 4))}, errors.ShapeError,
     "mask has shape (8, 4), expected one that broadcasts to (8, 1, 5): "
     "x is (8, 3, 5), and a mask has size 1 along the channels."),
    (X, {"gamma": np.ones(5, np.float32)}, errors.ShapeError,
     "gamma has shape (5,), expected (3,) to match axis 1 of x (8, 3, 5). "
     "Pass axis=-1 where the channels are last."),
    (X, {"eps": "1e-5"}, errors.ArgumentError, "eps is '1e-5', expected a finite number above 0, such as 1e-5."),
    (X, {"eps": True}, errors.ArgumentError, "eps is True, expected a finite number above 0, such as 1e-5."),
    (X, {"activation": ("leaky_relu", "0.1")}, errors.ArgumentError,
     "leaky_relu has slope '0.1', expected a finite number of at least 0."),
    (X, {"mask": np.full((8, 1, 1), -0.5)}, errors.ArgumentError,
     "mask has a negative weight (-0.5), expected weights of at least 0."),
    *[(X, {"mask": np.full((8, 1, 1), bad)}, errors.ArgumentError,
       "mask has NaN or infinite weights, expected finite weights of at least 0.") for bad in (np.nan, np.inf)],
    (X, {"mask": np.ones((8, 1, 1), complex)}, errors.DtypeError,
     "mask has dtype complex128, expected bool or real weights."),
    (X, {"mask": np.ma.masked_array(np.ones((8, 1, 1)))}, errors.DtypeError,
     "mask is a masked array, expected one without a mask. Pass mask.data or mask.filled(0)."),
    (X, {"mask": "all"}, errors.DtypeError, "mask has dtype <U3, expected bool or real weights."),
    # a batch with nothing to vary
    (X, {"mask": np.zeros((8, 1, 1), bool)}, errors.DegenerateBatchError,
     "every weight of the mask is 0, expected at least 2 values per channel with a weight. "
     "Leave this batch out, or normalize it with running statistics."),
    (X[:1, :, :1], {}, errors.DegenerateBatchError,
     "x (1, 3, 1) has one value per channel, expected at least 2: a single value has no variance. "
     "Leave out the last, smaller batch, or normalize with running statistics."),
    (X, {"mask": np.eye(8)[:, :1, None] * np.eye(5)[0]}, errors.DegenerateBatchError,
     "the mask leaves one value per channel of x (8, 3, 5), expected at least 2: a single value has no variance. "
     "Leave this batch out, or normalize it with running statistics."),
    (X, {"mask": np.full((8, 1, 1), 0.025), "correction": 1}, errors.DegenerateBatchError,
     "the weights sum to m = 1, expected more than the correction 1: "
     "the variance divides by m - correction. Scale the weights, or use correction=0."),
    # out
    (X, {"out": [0.0]}, errors.OutputError, "out is list, expected a NumPy array to write to."),
    (X, {"out": X[:4].copy()}, errors.OutputError,
     f"out has shape (4, 3, 5) and dtype float32, {PREALLOCATED}"),
    (X, {"out": WIDE.copy()}, errors.OutputError, f"out has shape (8, 3, 5) and dtype float64, {PREALLOCATED}"),
    (X, {"out": LOCKED}, errors.OutputError, "out is read-only, expected a writable array. Pass a copy."),
    (X, {"out": READ_ONLY}, errors.OutputError, "out is read-only, expected a writable array. Pass a copy."),
    (X, {"out": REPEATED}, errors.OutputError,
     "out overlaps itself, expected distinct elements. Pass np.empty_like(x)."),
    (X, {"out": X[::-1]}, errors.OutputError,
     "out overlaps x, expected memory of its own. Pass np.empty_like(x)."),
]  # fmt: skip


@pytest.mark.parametrize(("x", "arguments", "kind", "sentence"), FORWARD, ids=[f[-1][:60] for f in FORWARD])
def test_batch_norm(x: Any, arguments: dict[str, Any], kind: type[errors.XhatError], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        xhat.batch_norm(x, **arguments)
    assert str(raised.value) == f"batch_norm: {sentence}"


ZERO, ONE = np.zeros(3), np.ones(3)
NORMALIZE: list[tuple[dict[str, Any], type[errors.XhatError], str]] = [
    ({"mean": C4}, errors.ShapeError, "mean has shape (4,), expected (3,) to match axis 1 of x (8, 3, 5)."),
    ({"var": ONE[:, None]}, errors.ShapeError, "var has shape (3, 1), expected (3,) to match axis 1 of x (8, 3, 5)."),
    ({"mean": None}, errors.ArgumentError,
     "mean and var are needed, got None. batch_norm takes the batch's own."),
    ({"var": -ONE}, errors.ArgumentError, "var has a negative value (-1), expected at least 0."),
    ({"var": np.array([np.nan, -2, -1])}, errors.ArgumentError,
     "var has a negative value (-2), expected at least 0."),
    ({"mean": np.zeros(3, np.int64)}, errors.DtypeError,
     f"mean has dtype int64, {NUMBERS} Convert it first, for example mean.astype(np.float32)."),
    ({"eps": 0.0}, errors.ArgumentError, "eps is 0.0, expected a finite number above 0, such as 1e-5."),
    ({"gamma": C4}, errors.ShapeError, "gamma has shape (4,), expected (3,) to match axis 1 of x (8, 3, 5)."),
    ({"out": X[::-1]}, errors.OutputError, "out overlaps x, expected memory of its own. Pass np.empty_like(x)."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "kind", "sentence"), NORMALIZE, ids=[n[-1][:60] for n in NORMALIZE])
def test_normalize(arguments: dict[str, Any], kind: type[errors.XhatError], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        xhat.normalize(X, **{"mean": ZERO, "var": ONE, **arguments})
    assert str(raised.value) == f"normalize: {sentence}"


OF_X = "(8, 3, 5), the shape of x."
BACKWARD: list[tuple[Any, Any, type[errors.XhatError], str]] = [
    (X[:4], None, errors.ShapeError, f"dy has shape (4, 3, 5), expected {OF_X}"),
    (X[0], None, errors.ShapeError, f"dy has shape (3, 5), expected {OF_X}"),
    (WIDE, None, errors.DtypeError,
     "dy has dtype float64, expected float32, the dtype of x. Convert it with dy.astype(x.dtype)."),
    (X.astype(np.int64), None, errors.DtypeError,
     f"dy has dtype int64, {NUMBERS} Convert it first, for example dy.astype(np.float32)."),
    (X, X[:4], errors.OutputError, f"out has shape (4, 3, 5) and dtype float32, {PREALLOCATED}"),
    (X, LOCKED, errors.OutputError, "out is read-only, expected a writable array. Pass a copy."),
    (X, (None,), errors.OutputError, "out has 1 arrays, expected dx, or the pair (dx, dresidual)."),
    (X, (None, X.copy()), errors.OutputError,
     "out has a place for dresidual, expected dx alone: there was no residual."),
]  # fmt: skip


@pytest.mark.parametrize(("dy", "out", "kind", "sentence"), BACKWARD, ids=[b[-1][:60] for b in BACKWARD])
def test_batch_norm_backward(dy: Any, out: Any, kind: type[errors.XhatError], sentence: str) -> None:
    _, context = xhat.batch_norm(X)
    with pytest.raises(kind) as raised:
        xhat.batch_norm_backward(dy, context, out=out)
    assert str(raised.value) == f"batch_norm_backward: {sentence}"


@pytest.mark.parametrize(("function", "name"), [
    (xhat.batch_norm_backward, "batch_norm_backward"), (xhat.gradient_paths, "gradient_paths"),
])  # fmt: skip
def test_a_context_that_is_none_or_has_lost_its_x(function: Any, name: str) -> None:
    with pytest.raises(errors.ContextError) as raised:
        function(X, X)
    assert str(raised.value) == (
        f"{name}: context is ndarray, expected the context that batch_norm returned "
        "(y, context = xhat.batch_norm(...))."
    )
    x = X.copy()
    _, context = xhat.batch_norm(x, out=x)
    with pytest.raises(errors.ContextError) as raised:
        function(X, context)
    assert str(raised.value) == (
        f"{name}: the forward pass wrote y over x, and the gradient needs x. Give batch_norm another out."
    )


def test_moments() -> None:
    with pytest.raises(errors.DtypeError) as raised:
        xhat.moments([[1, 2], [3, 4]])
    assert str(raised.value).startswith("moments: x has dtype int64, expected float64, float32")
    with pytest.raises(errors.ShapeError) as raised_shape:
        xhat.moments(X).merge(xhat.moments(X, axis=2))
    assert str(raised_shape.value) == "merge: moments have channels (5,), expected (3,) like the first."
    nothing = xhat.moments(X[:0])
    for correction, count in ((0, "0"), (1, "0")):
        with pytest.raises(errors.ArgumentError) as raised_count:
            nothing.var(correction)
        assert str(raised_count.value) == (
            f"var: the count is {count}, expected more than the correction {correction}. Merge more batches first."
        )


def test_each_class_is_also_the_standard_error_that_a_caller_would_catch() -> None:
    standard = {errors.DtypeError: TypeError}
    classes = [getattr(errors, name) for name in errors.__all__ if name != "XhatError"]
    for kind in classes:
        assert issubclass(kind, errors.XhatError)
        assert issubclass(kind, standard.get(kind, ValueError))


def test_nothing_is_written_when_something_is_refused() -> None:
    out = np.full_like(X, 7)
    for x, arguments, kind, _ in FORWARD:
        if x is X and "out" not in arguments:
            with pytest.raises(kind):
                xhat.batch_norm(x, **arguments, out=out)
    assert (out == 7).all()


HUGE = 10**400  # an int that is no float


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        ({"eps": HUGE}, "batch_norm: eps is 1000"),
        ({"activation": ("leaky_relu", HUGE)}, "batch_norm: leaky_relu has slope 1000"),
        (
            {"mask": np.full(X.shape[:1] + (1,) * (X.ndim - 1), 1e308)},
            "batch_norm: the weights sum to m = inf,",
        ),
        ({"mask": np.full(X.shape[:1] + (1,) * (X.ndim - 1), 1e-305)}, "batch_norm: the weights sum to m = "),
    ],
)
def test_numbers_beyond_float64_are_refused(arguments: dict[str, object], beginning: str) -> None:
    with pytest.raises(errors.ArgumentError) as raised:
        xhat.batch_norm(X, **arguments)  # type: ignore[arg-type]
    assert str(raised.value).startswith(beginning)


def test_the_layer_refuses_numbers_beyond_float64() -> None:
    for name in ("eps", "momentum"):
        with pytest.raises(errors.ArgumentError, match=f"{name} is 1000"):
            BatchNorm(3, **{name: HUGE})
    with pytest.raises(errors.ArgumentError, match="correction is array"):
        BatchNorm(3, correction=np.array([0, 1]))  # type: ignore[arg-type]


def test_a_masked_out_is_refused() -> None:
    with pytest.raises(errors.OutputError, match="out is MaskedArray, expected a NumPy array"):
        xhat.batch_norm(X, out=np.ma.zeros(X.shape, X.dtype))


def test_rows_of_unequal_length_are_refused() -> None:
    with pytest.raises(errors.ShapeError, match="x makes no array, expected rows of equal length"):
        xhat.batch_norm([[1.0], [2.0, 3.0]])


def test_merge_takes_moments_alone() -> None:
    moments = xhat.moments(X)
    with pytest.raises(errors.ArgumentError, match=r"merge: got list, expected Moments: a.merge\(b, c\)"):
        moments.merge([moments])  # type: ignore[arg-type]


def test_counts_of_any_size_merge() -> None:
    one = xhat.moments(X)
    for scale in (1e-140, 1e140, 1e200):
        scaled = one._replace(count=one.count * scale, m2=one.m2 * scale)
        np.testing.assert_allclose(scaled.merge(scaled).var(), one.merge(one).var(), rtol=1e-12)
        apart = scaled._replace(mean=one.mean + 3)
        np.testing.assert_allclose(scaled.merge(apart).var(), one.var() + 9 / 4, rtol=1e-12)


def test_an_instruction_set_whose_name_is_no_text() -> None:
    with pytest.raises(errors.EngineError, match="expected one of"):
        ops._use("\udcff")
