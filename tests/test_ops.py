"""The gate: every layout, dtype and option against the oracle; what comes back, and where it lies."""

from typing import Any

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, DTYPES, EPSILON, LAYOUTS, MASKS, Array, Layout, away_from_the_kink, mask_of

import xhat
from xhat import ops

# Each option alone with every layout; all together on a few (test_gradients and test_properties mix them).
OPTIONS: dict[str, tuple[str, bool, str, int]] = {
    "plain": ("none", False, "none", 0),
    "m - 1": ("none", False, "none", 1),
    "bool mask": ("bool", False, "none", 0),
    "weights, m - 1": ("weights", False, "none", 1),
    "residual": ("none", True, "none", 0),
    "relu": ("none", False, "relu", 0),
    "leaky_relu, residual": ("none", True, "leaky_relu", 0),
    "silu": ("none", False, "silu", 0),
    "silu, residual, weights": ("weights", True, "silu", 1),
    "relu, residual, mask": ("bool", True, "relu", 0),
}


class Call:
    """The arguments of a forward and backward pass in one layout and dtype, and the oracle's results."""

    def __init__(self, layout: Layout, dtype: Any, options: str = "plain", offset: float = 1) -> None:
        mask, residual, activation, correction = OPTIONS[options]
        self.x = layout.array("x", dtype, scale=2, offset=offset)
        rng = np.random.default_rng(7)
        self.gamma = rng.uniform(0.5, 2, layout.channels).astype(dtype)
        self.beta = rng.normal(size=layout.channels).astype(dtype)
        self.gamma.flat[0] *= -1
        self.options = {
            "axis": layout.axis,
            "eps": 1e-3,
            "correction": correction,
            "mask": mask_of(mask, layout, "mask"),
            "residual": layout.array("residual", dtype) if residual else None,
            "activation": ACTIVATIONS[activation],
        }
        self.expected = oracle.forward(self.x, self.gamma, self.beta, **self.options)
        self.dy = away_from_the_kink(layout.array("dy", dtype), self.expected.pre, 0.05)
        self.gradients = oracle.backward(self.dy, self.x, self.gamma, self.beta, **self.options)

    def forward(self, **more: Any) -> tuple[Array, Any]:
        """The call itself."""
        return xhat.batch_norm(self.x, self.gamma, self.beta, **{**self.options, **more})


def near(got: Any, expected: Array, dtype: Any, slack: float | None = None) -> None:
    """Within a few roundings of the largest value; sums are float64, and so within more of theirs."""
    slack = slack or (32 if dtype == np.float64 else 4)
    limit = slack * EPSILON[np.dtype(dtype).name] * max(1, float(np.max(np.abs(expected), initial=0)))
    assert oracle.worst(got, expected) <= limit


@pytest.mark.parametrize("options", OPTIONS)
def test_forward_and_backward_in_every_layout(layout: Layout, options: str) -> None:
    call = Call(layout, np.float32, options)
    y, context = call.forward()
    near(y, call.expected.y, np.float32)
    near(context.mean, call.expected.mean, np.float64)
    near(context.var, call.expected.var, np.float64)
    assert context.count == pytest.approx(float(call.expected.m), rel=1e-14)
    grads = xhat.batch_norm_backward(call.dy, context)
    near(grads.dx, call.gradients.dx, np.float32)
    near(grads.dgamma, call.gradients.dgamma, np.float32)
    near(grads.dbeta, call.gradients.dbeta, np.float32)
    if call.options["residual"] is None:
        assert grads.dresidual is None
    else:
        near(grads.dresidual, call.gradients.dpre, np.float32)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("where", ["NCHW", "NHWC", "(N, C), many", "cropped", "every other value"])
def test_every_dtype(where: str, options: str, name: str) -> None:
    call = Call(LAYOUTS[where], DTYPES[name], options)
    y, context = call.forward()
    near(y, call.expected.y, name)
    grads = xhat.batch_norm_backward(call.dy, context)
    near(grads.dx, call.gradients.dx, name)
    near(grads.dgamma, call.gradients.dgamma, name)
    near(grads.dbeta, call.gradients.dbeta, name)
    results = (y, grads.dx, grads.dgamma, grads.dbeta, grads.dresidual)
    assert all(r.dtype == DTYPES[name] for r in results if r is not None)


def order_of(a: Array) -> list[int]:
    """The axes longer than 1, slowest first."""
    return sorted((i for i in range(a.ndim) if a.shape[i] > 1), key=lambda i: -abs(a.strides[i]))


def test_results_come_in_the_memory_order_of_x(layout: Layout) -> None:
    call = Call(layout, np.float32)
    y, context = call.forward()
    grads = xhat.batch_norm_backward(call.dy, context)
    normalized = xhat.normalize(call.x, context.mean, context.var, axis=layout.axis)
    for result in (y, grads.dx, normalized):
        assert result.shape == call.x.shape
        if 0 not in call.x.strides:
            assert order_of(result) == order_of(call.x)
    assert (
        context.mean.shape == context.var.shape == grads.dgamma.shape == grads.dbeta.shape == layout.channels
    )


@pytest.mark.parametrize("lies", ["NCHW", "NHWC", "Fortran", "cropped", "broadcast"])
@pytest.mark.parametrize("where", ["NCHW", "NHWC", "every other channel", "cropped"])
def test_dy_and_the_residual_may_lie_otherwise_than_x(where: str, lies: str) -> None:
    call, other = Call(LAYOUTS[where], np.float32, "silu, residual, weights"), LAYOUTS[lies]
    call.options["residual"], dy = (
        other.array("another residual", np.float32),
        other.array("another dy", np.float32),
    )
    y, context = call.forward()
    near(y, oracle.forward(call.x, call.gamma, call.beta, **call.options).y, np.float32)
    expected = oracle.backward(dy, call.x, call.gamma, call.beta, **call.options)
    near(xhat.batch_norm_backward(dy, context).dx, expected.dx, np.float32)


def test_inputs_are_left_as_they_were(layout: Layout) -> None:
    call = Call(layout, np.float32, "silu, residual, weights")
    inputs = [call.x, call.gamma, call.beta, call.dy, call.options["mask"], call.options["residual"]]
    before = [a.tobytes() for a in inputs]
    _, context = call.forward()
    xhat.batch_norm_backward(call.dy, context)
    xhat.gradient_paths(call.dy, context)
    assert [a.tobytes() for a in inputs] == before


@pytest.mark.parametrize("given", ["neither", "gamma", "beta"])
def test_parameters_may_be_left_out(given: str) -> None:
    call = Call(LAYOUTS["NCHW"], np.float32)
    gamma = call.gamma if given == "gamma" else None
    beta = call.beta if given == "beta" else None
    y, context = xhat.batch_norm(call.x, gamma, beta)
    near(y, oracle.forward(call.x, gamma, beta).y, np.float32)
    expected, grads = (
        oracle.backward(call.dy, call.x, gamma, beta),
        xhat.batch_norm_backward(call.dy, context),
    )
    near(grads.dx, expected.dx, np.float32)
    assert (grads.dgamma is None) == (gamma is None)
    assert (grads.dbeta is None) == (beta is None)


@pytest.mark.parametrize("wider", ["float32", "float64"])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_parameters_may_be_wider_than_x(name: str, wider: str) -> None:
    layout = LAYOUTS["NCHW"]
    call = Call(layout, DTYPES[name])
    call.gamma, call.beta = call.gamma.astype(wider), call.beta.astype(wider)
    y, context = call.forward()
    near(y, call.expected.y, name)
    grads = xhat.batch_norm_backward(call.dy, context)
    assert (y.dtype, grads.dx.dtype) == (DTYPES[name], DTYPES[name])
    assert (grads.dgamma.dtype, grads.dbeta.dtype) == (np.dtype(wider), np.dtype(wider))
    near(grads.dgamma, call.gradients.dgamma, "float32")


@pytest.mark.parametrize("options", ["plain", "leaky_relu, residual", "silu, residual, weights"])
def test_normalize_uses_the_moments_it_is_given(layout: Layout, options: str) -> None:
    call = Call(layout, np.float32, options)
    mean, var = np.full(layout.channels, 0.75), np.full(layout.channels, 2.5)
    more = {k: call.options[k] for k in ("axis", "eps", "residual", "activation")}
    expected = oracle.forward(call.x, call.gamma, call.beta, **more, fixed=(mean, var))
    for dtype in (np.float64, np.float32):
        got = xhat.normalize(call.x, mean.astype(dtype), var.astype(dtype), call.gamma, call.beta, **more)
        near(got, expected.y, np.float32)


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
def test_the_backward_of_evaluation_takes_the_moments_as_constants(residual: bool, activation: Any) -> None:
    layout = LAYOUTS["NHWC"]
    call = Call(layout, np.float32)
    fixed = np.full(layout.channels, 0.75), np.full(layout.channels, 2.5)
    more = {
        "axis": 1,
        "eps": 1e-3,
        "activation": activation,
        "residual": layout.array("r", np.float32) if residual else None,
    }
    expected = oracle.forward(call.x, call.gamma, call.beta, **more, fixed=fixed)
    y, context = ops.normalize_with_context(call.x, *fixed, call.gamma, call.beta, **more)
    near(y, expected.y, np.float32)
    dy = away_from_the_kink(call.dy, expected.pre, 1e-3)
    gradients = oracle.backward(dy, call.x, call.gamma, call.beta, **more, fixed=fixed)
    grads = xhat.batch_norm_backward(dy, context)
    for got, right in zip(grads[:3], gradients[:3], strict=True):
        near(got, right, np.float32)


@pytest.mark.parametrize("options", OPTIONS)
def test_gradient_paths_sum_to_dx(layout: Layout, options: str) -> None:
    call = Call(layout, np.float64, options)
    _, context = call.forward()
    paths = xhat.gradient_paths(call.dy, context)
    assert all(p.dtype == np.float64 and p.shape == call.x.shape for p in paths)
    near(paths.direct + paths.mean + paths.variance, call.gradients.dx, np.float64)
    w = oracle.weights_of(call.x, call.options["mask"])
    scale = oracle.on_channels(call.expected.rstd * call.gamma, call.x, layout.axis)
    near(paths.direct, scale * call.gradients.dpre, np.float64)
    mean = -scale * w * oracle.on_channels(call.gradients.dbeta / call.expected.m, call.x, layout.axis)
    near(paths.mean, mean, np.float64)


@pytest.mark.parametrize("kind", MASKS)
def test_moments_in_every_layout(layout: Layout, kind: str) -> None:
    mask = mask_of(kind, layout, "moments")
    for name in ("float32", "float64"):
        x = layout.array("x", DTYPES[name], scale=3, offset=100)
        got, expected = (
            xhat.moments(x, axis=layout.axis, mask=mask),
            oracle.moments(x, axis=layout.axis, mask=mask),
        )
        assert got.count == pytest.approx(float(expected.m), rel=1e-14)
        near(got.mean, expected.mean, np.float64)
        near(got.m2, expected.m2, np.float64)
        near(got.var(), expected.m2 / expected.m, np.float64)
        near(got.var(correction=1), expected.m2 / (expected.m - 1), np.float64)


@pytest.mark.parametrize("cuts", [[1], [3, 4], [1, 2, 30], [0, 5], [37]])
def test_merged_moments_are_those_of_the_whole(cuts: list[int]) -> None:
    """Uneven and empty parts included."""
    x = LAYOUTS["(N, C)"].array("merge", np.float32, offset=1e4)
    first, *others = (xhat.moments(part) for part in np.split(x, cuts))
    merged, expected = first.merge(*others), oracle.moments(x)
    assert merged.count == 37
    near(merged.mean, expected.mean, np.float64)
    assert oracle.worst(merged.m2, expected.m2) <= 1e-12 * 37  # a mean near 1e4 is known to 1e-12


def test_a_mask_is_the_same_as_leaving_values_out() -> None:
    x = LAYOUTS["(N, C)"].array("masked", np.float64)
    keep = np.arange(37) % 3 > 0
    masked, _ = xhat.batch_norm(x, mask=keep[:, None])
    left, _ = xhat.batch_norm(x[keep])
    near(masked[keep], oracle.wide(left), np.float64)


def test_whole_weights_are_the_same_as_repeating_values() -> None:
    x = LAYOUTS["(N, C)"].array("weighted", np.float64)
    times = np.arange(37) % 4
    weighted = xhat.moments(x, mask=times[:, None].astype(np.float64))
    repeated = xhat.moments(np.repeat(x, times, axis=0))
    assert weighted.count == repeated.count
    near(weighted.m2, oracle.wide(repeated.m2), np.float64)


def test_a_mask_of_ones_is_no_mask() -> None:
    """It has no weights to read, and the bits of a call without one."""
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    (y, context), (expected, _) = xhat.batch_norm(x, mask=np.ones((6, 1, 4))), xhat.batch_norm(x)
    assert context.weights is None
    assert y.tobytes() == expected.tobytes()


def test_an_empty_batch_changes_no_moments() -> None:
    """Not by an infinity times 0 either."""
    one, none = xhat.moments(np.full((4, 2), 1e200)), xhat.moments(np.zeros((0, 2)))
    for merged in (one.merge(none), none.merge(one)):
        assert merged.count == 4
        assert np.array_equal((merged.mean, merged.m2), (one.mean, one.m2))
