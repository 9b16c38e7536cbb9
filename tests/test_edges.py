"""The ends of what is defined: empty batches, single values, strange weights, lists, padding that is not a number."""

from typing import Any

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, DTYPES, LAYOUTS

import xhat
from xhat import ops
from xhat.errors import ContextError, DegenerateBatchError


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((0, 5), 1), ((0, 5, 7), 1), ((3, 5, 0), 1), ((3, 0, 7), 1), ((3, 0, 5), -1), ((0,), 0)],
)
def test_an_empty_batch_gives_empty_results(
    shape: tuple[int, ...], axis: int, activation: Any, name: str
) -> None:
    x = np.zeros(shape, DTYPES[name])
    gamma = np.ones(shape[axis], DTYPES[name])
    for correction in (0, 1):
        y, context = xhat.batch_norm(
            x, gamma, gamma, axis=axis, activation=activation, residual=x, correction=correction
        )
        grads = xhat.batch_norm_backward(y, context)
        assert y.shape == grads.dx.shape == grads.dresidual.shape == shape
        assert (grads.dgamma == 0).all()
        assert (grads.dbeta == 0).all()
        assert all(path.shape == shape for path in xhat.gradient_paths(y, context))
    assert xhat.normalize(x, gamma, gamma, axis=axis).shape == shape


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.1)], ids=str)
def test_constant_statistics_tie_no_number_to_another(activation: Any, value: float, name: str) -> None:
    """dx of evaluation is gamma rstd g, whatever stands elsewhere in the channel."""
    x = LAYOUTS["NCHW"].array("x").astype(DTYPES[name])
    spoilt = x.copy()
    spoilt[1, 2, 3, 1] = value
    ones = np.ones(x.shape[1])
    found = []
    for a in (x, spoilt):
        y, context = ops.normalize_with_context(a, ones * 0.1, ones * 2, activation=activation)
        dy = np.ones_like(y)
        found.append((xhat.batch_norm_backward(dy, context).dx, sum(xhat.gradient_paths(dy, context))))
    for clean, odd in zip(*found, strict=True):
        assert np.isfinite(odd.astype(float)).all()
        clean[1, 2, 3, 1] = odd[1, 2, 3, 1] = 0
        assert np.array_equal(clean, odd)


def test_the_moments_of_nothing_do_not_change_those_they_are_merged_with() -> None:
    nothing, some = xhat.moments(np.zeros((0, 5))), xhat.moments(LAYOUTS["(N, C)"].array("x"))
    assert nothing.count == 0
    for merged in (nothing.merge(some), some.merge(nothing), nothing.merge(nothing, some)):
        assert merged.count == 37
        assert np.array_equal(merged.mean, some.mean)
        assert np.array_equal(merged.m2, some.m2)
    assert nothing.merge(nothing).count == 0


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        ((1, 5), None),
        ((1, 5, 1, 1), None),
        ((5,), None),
        ((3, 5), [[0], [1], [0]]),
        ((3, 5), [[0], [2.5], [0]]),
        ((3, 5), [[0], [0], [0]]),
    ],
)
def test_a_single_value_per_channel_has_no_variance(
    shape: tuple[int, ...], mask: Any, correction: int
) -> None:
    x = np.ones(shape, np.float32)
    mask = None if mask is None else np.array(mask, np.float64)
    with pytest.raises(DegenerateBatchError):
        xhat.batch_norm(x, axis=1 if len(shape) > 1 else 0, mask=mask, correction=correction)
    xhat.normalize(x, np.zeros(5), np.ones(5), axis=1 if len(shape) > 1 else 0)  # evaluation needs none


@pytest.mark.parametrize(("weights", "correction"), [([0.5, 0.25, 0], 1), ([0.5, 0.5, 0], 1)])
def test_weights_that_sum_to_no_more_than_the_correction(weights: list[float], correction: int) -> None:
    x, mask = np.arange(6, dtype=np.float64).reshape(3, 2), np.array(weights).reshape(3, 1)
    with pytest.raises(DegenerateBatchError):
        xhat.batch_norm(x, mask=mask, correction=correction)
    y, _ = xhat.batch_norm(x, mask=mask)  # without the correction they are defined
    assert oracle.worst(y, oracle.forward(x, mask=mask).y) < 1e-14


def test_the_scale_of_the_weights_does_not_matter_without_a_correction() -> None:
    x = LAYOUTS["(N, C)"].array("x")
    mask = np.random.default_rng(0).uniform(0.1, 1, (37, 1))
    y, _ = xhat.batch_norm(x, mask=mask)
    for scale in (1e-200, 1e-3, 1e200):
        scaled, context = xhat.batch_norm(x, mask=mask * scale)
        assert np.allclose(scaled, y, rtol=0, atol=1e-14)
        expected = oracle.backward(x, x, mask=mask * scale)
        assert oracle.relative_l2(xhat.batch_norm_backward(x, context).dx, expected.dx) < 1e-13


@pytest.mark.parametrize("where", ["(N, C)", "(N, C, L)"])
@pytest.mark.parametrize("scale", [1e-43, 1e-36, 1e36, 1e43])
def test_weights_beyond_float32(where: str, scale: float) -> None:
    """Gradients beyond it, too, so that what is made of both is not."""
    layout = LAYOUTS[where]
    x, dy = layout.array("x", np.float32), layout.array("dy", np.float32)
    dy *= np.float32(min(scale * 1e25, 1e25))
    mask = scale * np.random.default_rng(0).uniform(0.1, 1, layout.mask_shape)
    _, context = xhat.batch_norm(x, mask=mask)
    expected = oracle.backward(dy, x, mask=mask)
    assert oracle.relative_l2(xhat.batch_norm_backward(dy, context).dx, expected.dx) <= 1e-6


@pytest.mark.parametrize("where", ["(N, C)", "(N, C, L)", "(N, L, C)"])
@pytest.mark.parametrize("value", [1e3, 1e6])
@pytest.mark.parametrize("weight", [1e-3, 1e-12, 1e-30])
def test_an_outlier_of_little_weight_in_the_first_place(where: str, value: float, weight: float) -> None:
    """Soft masks are almost 0 where they are off; what lies there must not cost the others their digits."""
    layout = LAYOUTS[where]
    x = layout.array("x", np.float32)
    mask = np.ones(layout.mask_shape)
    index = [slice(None)] * x.ndim
    for a in range(x.ndim):
        if layout.mask_shape[a] > 1:
            index[a] = slice(0, 1)
    x[tuple(index)] = value
    mask[tuple(index)] = weight
    expected = oracle.forward(x, axis=layout.axis, mask=mask)
    y, context = xhat.batch_norm(x, axis=layout.axis, mask=mask)
    assert float(np.max(np.abs(context.var / expected.var - 1))) <= 1e-6
    inside = np.abs(expected.y) < 10
    assert oracle.worst(y[inside], expected.y[inside]) <= 2e-6


def test_weights_stay_with_values_that_are_gathered_in_chunks() -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 4, 3, 2062))[..., ::2]
    mask = rng.uniform(size=(4, 1, 1031))
    y, context = xhat.batch_norm(x, mask=mask)
    assert oracle.worst(y, oracle.forward(x, mask=mask).y) < 1e-13
    dx = xhat.batch_norm_backward(dy, context).dx
    assert oracle.worst(dx, oracle.backward(dy, x, mask=mask).dx) < 1e-13


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
def test_the_paths_do_not_see_padding_that_is_not_a_number(residual: bool, activation: Any) -> None:
    layout = LAYOUTS["(N, C, L)"]
    x, dy = layout.array("x"), layout.array("dy")
    keep = np.ones(layout.mask_shape, np.bool_)
    keep[1, 0, 3:] = False
    padding = np.broadcast_to(~keep, x.shape)
    dy[padding] = 0
    results = []
    for filler in (0.0, np.nan):
        x[padding] = filler
        _, context = xhat.batch_norm(x, mask=keep, activation=activation, residual=x if residual else None)
        grads = xhat.batch_norm_backward(dy, context)
        results.append([a[~padding] for a in (grads.dx, *xhat.gradient_paths(dy, context))])
    for clean, padded in zip(*results, strict=True):
        assert np.array_equal(clean, padded)


@pytest.mark.parametrize("name", ["float64", "float32"])
@pytest.mark.parametrize("where", ["(N, C)", "(N, C, L)"])
def test_activations_far_out(where: str, name: str) -> None:
    """silu and relu of large arguments: their limits, not what an exponential that overflows makes of them."""
    layout, dtype = LAYOUTS[where], DTYPES[name]
    x = layout.array("x", dtype)
    mean, var = np.zeros(layout.channels), np.ones(layout.channels)
    far = layout.array("far", dtype)
    top = float(np.finfo(dtype).max) / 4
    far.flat[: far.size] = np.resize(
        [-top, top, -1e30, 1e30, -800, 800, -100, 100, -88, 88, -20, 20, 0], far.size
    )
    for activation in ("relu", "silu", ("leaky_relu", 0.5)):
        expected = oracle.forward(x, residual=far, activation=activation, fixed=(mean, var))
        y, context = ops.normalize_with_context(x, mean, var, residual=far, activation=activation)
        assert np.allclose(y, expected.y.astype(dtype), rtol=1e-6, atol=1e-20)
        dy = np.where(np.abs(expected.pre) < 1e-3, 0, np.ones_like(x)).astype(dtype)
        gradients = oracle.backward(dy, x, residual=far, activation=activation, fixed=(mean, var))
        assert np.allclose(
            xhat.batch_norm_backward(dy, context).dx, gradients.dx.astype(dtype), rtol=1e-6, atol=1e-6
        )


def test_lists_and_other_sequences_are_taken_as_arrays() -> None:
    rows = [[1.0, 2.0], [3.0, 5.0], [8.0, 13.0]]
    y, context = xhat.batch_norm(rows, [1.0, 2.0], (0.0, 1.0), mask=[[True], [True], [False]])
    expected = oracle.forward(np.array(rows), [1.0, 2.0], [0.0, 1.0], mask=[[1], [1], [0]])
    assert oracle.worst(y, expected.y) < 1e-14
    assert xhat.batch_norm_backward(rows, context).dx.shape == (3, 2)
    assert xhat.moments(rows).count == 3


def test_a_scalar_mask_is_a_weight_for_all() -> None:
    x = LAYOUTS["(N, C)"].array("x")
    assert xhat.moments(x, mask=True).count == 37
    assert xhat.moments(x, mask=0.5).count == 18.5


@pytest.mark.parametrize("order", [(1, 2), (2, 1), (-2, -1), (-1, 1)])
def test_the_order_of_several_axes_does_not_matter(order: tuple[int, int]) -> None:
    """Parameters have the shape of the channel axes in x's own order."""
    layout = LAYOUTS["two channel axes"]
    x = layout.array("x")
    gamma = np.random.default_rng(0).normal(size=layout.channels)
    axis = tuple(a % 4 if a > 0 else a - 1 for a in order)  # (N, 2, 5, 7): channels are axes 1 and 2
    y, context = xhat.batch_norm(x, gamma, axis=axis)
    assert context.mean.shape == layout.channels
    assert oracle.worst(y, oracle.forward(x, gamma, axis=(1, 2)).y) < 1e-13


def test_subclasses_come_back_as_plain_arrays() -> None:
    class Labelled(np.ndarray[Any, Any]):
        """An array with something to say."""

    x = LAYOUTS["(N, C)"].array("x").view(Labelled)
    y, context = xhat.batch_norm(x)
    grads = xhat.batch_norm_backward(x, context)
    assert {type(y), type(grads.dx), type(context.mean)} == {np.ndarray}


def test_an_array_of_the_caller_that_got_another_shape_is_not_walked() -> None:
    """What is larger than it was would be read and written beyond its end."""
    for shape in ((600, 20), (5, 600, 4), (12000,)):
        x, residual = (np.random.default_rng(seed).normal(size=(600, 5, 4)) for seed in range(2))
        for name, activation in (("x", None), ("the residual or y", "relu"), ("the residual or y", "silu")):
            y, context = xhat.batch_norm(x, residual=residual, activation=activation)
            changed = x if name == "x" else y if activation == "relu" else residual
            dy = np.ones(shape if name == "x" else x.shape)
            expected = xhat.batch_norm_backward(np.ones(x.shape), context)
            changed.resize(shape, refcheck=False)
            for function in (xhat.batch_norm_backward, xhat.gradient_paths):
                with pytest.raises(ContextError, match=f"{name} has shape"):
                    function(dy, context)
            changed.resize((600, 5, 4), refcheck=False)
            assert np.array_equal(xhat.batch_norm_backward(np.ones(x.shape), context).dx, expected.dx)


@pytest.mark.parametrize("name", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("where", ["(N, C)", "(N, C, L)"])
def test_a_constant_channel_has_a_gradient_whatever_divides_it(where: str, name: str) -> None:
    layout = LAYOUTS[where]
    x, dy = layout.array("x", DTYPES[name]), layout.array("dy", DTYPES[name])
    x[:, 1] = 3
    gamma = np.ones(layout.channels)
    gamma[1] = 1e20  # over eps: beyond float64
    _, context = xhat.batch_norm(x, gamma, eps=1e-300)
    gradients = xhat.batch_norm_backward(dy, context)
    assert gradients.dgamma[1] == 0
    assert not np.isnan(gradients.dx.astype(np.float64)).any()


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
@pytest.mark.parametrize("where", ["(N, C)", "(N, C, L)"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_slope_beyond_float32(where: str, name: str, residual: bool) -> None:
    layout, dtype, slope = LAYOUTS[where], DTYPES[name], ("leaky_relu", 1e39)
    x, dy = layout.array("x", dtype), layout.array("dy", dtype)
    added = np.zeros_like(x) if residual else None
    gamma, beta = np.full(layout.channels, 1e-36), np.zeros(layout.channels)
    y, context = xhat.batch_norm(x, gamma, beta, residual=added, activation=slope)
    expected = oracle.forward(x, gamma, activation=slope)
    assert np.allclose(y.astype(np.float64), expected.y.astype(np.float64), rtol=2**-7)
    dy[expected.pre < 0] = 0  # and passes as 0
    gradients = xhat.batch_norm_backward(dy, context)
    right = oracle.backward(dy, x, gamma, activation=slope)
    assert oracle.relative_l2(gradients.dbeta, right.dbeta) < 1e-6
    assert np.isfinite(gradients.dx.astype(np.float64)).all()


@pytest.mark.parametrize("where", ["(N, C)", "(N, C, L)"])
def test_a_mean_near_the_ends_of_float32(where: str) -> None:
    """Subtracting it must not overflow, and its low half must not vanish."""
    layout = LAYOUTS[where]
    x, ones = layout.array("x"), np.ones(layout.channels)
    large = (x / np.abs(x).max() * 3.4e38).astype(np.float32)
    fixed = (ones * -9e36, ones * 1e50)
    y = xhat.normalize(large, *fixed)
    assert np.allclose(y, oracle.forward(large, fixed=fixed).y.astype(np.float64), rtol=1e-6)
    small, dy = (x * 3e-40).astype(DTYPES["bfloat16"]), (layout.array("dy") * 1e30).astype(DTYPES["bfloat16"])
    _, context = xhat.batch_norm(small, ones, eps=1e-30)
    expected = oracle.backward(dy, small, ones, eps=1e-30)
    assert oracle.relative_l2(xhat.batch_norm_backward(dy, context).dgamma, expected.dgamma) <= 1e-6
