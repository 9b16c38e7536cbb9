"""xhat.numpy.BatchNorm: its forward, running moments and backward, against the oracle and finite differences."""

import numpy as np
import oracle
import pytest

import xhat
from xhat.errors import ArgumentError, ContextError, DegenerateBatchError, ShapeError
from xhat.numpy import BatchNorm

RNG = np.random.default_rng(7)
SHAPES = [((9, 5), 1), ((4, 3, 5), 1), ((4, 5, 3), -1), ((4, 3, 5, 2), 1), ((4, 5, 2, 3), 3)]


ACTIVATIONS = [None, "relu", ("leaky_relu", 0.1), "silu"]


def layer_with_parameters(features, **options):
    layer = BatchNorm(features, **options)
    layer.gamma[...] = RNG.uniform(0.5, 2, features)
    layer.beta[...] = RNG.normal(size=features)
    return layer


# Forward and running moments


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_training_normalizes_with_the_moments_of_the_batch(shape, axis, activation, correction):
    x = RNG.normal(50, 3, shape).astype(np.float32)
    residual = RNG.normal(size=shape).astype(np.float32)
    layer = layer_with_parameters(shape[axis], axis=axis, activation=activation, correction=correction)
    options = {"axis": axis, "correction": correction, "residual": residual, "activation": activation}
    want = oracle.forward(x, layer.gamma, layer.beta, **options).y
    got = layer.forward(x, residual=residual)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.parametrize("state", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_x_of_every_dtype_meets_parameters_of_either(dtype, state):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    layer = layer_with_parameters(5, dtype=state)
    x, dy = (RNG.normal(3, 2, (8, 5)).astype(dtype) for _ in range(2))
    want = oracle.forward(x, layer.gamma, layer.beta).y
    y, dx = layer.forward(x), layer.backward(dy)
    assert (y.dtype, dx.dtype) == (dtype, dtype)
    assert layer.dgamma.dtype == layer.dbeta.dtype == layer.running_var.dtype == state
    np.testing.assert_allclose(y.astype(np.float64), want, atol=4 * float(ml_dtypes.finfo(dtype).eps))
    np.testing.assert_allclose(layer.dbeta, dy.astype(np.float64).sum(0), rtol=1e-6)


@pytest.mark.parametrize("running_correction", [0, 1])
@pytest.mark.parametrize("correction", [0, 1])
def test_running_moments_follow_with_their_own_correction(correction, running_correction):
    layer = BatchNorm(
        5, momentum=0.3, correction=correction, running_correction=running_correction, dtype=np.float64
    )
    mean, var = np.zeros(5), np.ones(5)
    for n in (4, 7, 3):
        x = RNG.normal(3, 2, (n, 5))
        layer.forward(x)
        m, mu, m2 = oracle.moments(x)
        mean, var = 0.7 * mean + 0.3 * mu, 0.7 * var + 0.3 * m2 / (m - running_correction)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, var, rtol=1e-13)
    assert layer.updates == 3


def test_without_momentum_the_average_is_exact_and_an_empty_batch_does_not_count():
    layer = BatchNorm(5, momentum=None, dtype=np.float64)
    batches = [RNG.normal(2, 3, (n, 5)) for n in (4, 0, 6, 0, 8)]
    for x in batches:
        assert layer.forward(x).shape == x.shape
    seen = [oracle.moments(x) for x in batches if len(x)]
    np.testing.assert_allclose(layer.running_mean, np.mean([mean for _, mean, _ in seen], 0), rtol=1e-14)
    np.testing.assert_allclose(layer.running_var, np.mean([m2 / (m - 1) for m, _, m2 in seen], 0), rtol=1e-14)
    assert layer.updates == 3


def test_an_empty_batch_has_an_empty_gradient_and_zero_parameter_gradients():
    layer = layer_with_parameters(5)
    y = layer.forward(np.empty((0, 5), np.float32))
    dx = layer.backward(np.empty_like(y))
    assert dx.shape == (0, 5)
    assert not layer.dgamma.any()
    assert not layer.dbeta.any()
    assert layer.updates == 0
    assert not layer.running_mean.any()
    assert (layer.running_var == 1).all()


def test_a_mask_weighs_the_batch_and_the_running_moments():
    x = RNG.normal(5, 2, (6, 3, 4))
    weights = RNG.integers(0, 3, (6, 1, 4)).astype(np.float64)
    layer = layer_with_parameters(3, momentum=1.0, dtype=np.float64)
    m, mean, m2 = oracle.moments(x, mask=weights)
    want = oracle.forward(x, layer.gamma, layer.beta, mask=weights).y
    np.testing.assert_allclose(layer.forward(x, mask=weights), want, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(layer.running_mean, mean, rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, m2 / (m - 1), rtol=1e-13)


def test_weights_that_sum_to_too_little_for_the_running_variance_change_nothing():
    layer = BatchNorm(2)
    x = RNG.normal(size=(4, 2)).astype(np.float32)
    with pytest.raises(DegenerateBatchError) as caught:
        layer.forward(x, mask=np.full((4, 1), 0.125))
    assert str(caught.value) == (
        "BatchNorm.forward: the batch has m = 0.5, expected more than running_correction=1 for the running "
        "variance; pass running_correction=0, or more (or larger) weights."
    )
    assert layer.updates == 0
    assert (layer.running_var == 1).all()
    with pytest.raises(ContextError):
        layer.backward(x)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_evaluation_normalizes_with_the_running_moments_and_leaves_them(momentum):
    layer = layer_with_parameters(5, momentum=momentum, activation="silu")
    for _ in range(3):
        layer.forward(RNG.normal(4, 2, (8, 5)).astype(np.float32))
    before = layer.state_dict()
    x = RNG.normal(4, 2, (1, 5)).astype(np.float32)  # one value: nothing varies, and nothing has to
    fixed = layer.running_mean, layer.running_var
    want = oracle.forward(x, layer.gamma, layer.beta, activation="silu", fixed=fixed).y
    np.testing.assert_allclose(layer.forward(x, training=False), want, rtol=1e-6, atol=1e-6)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_evaluation_without_running_moments_uses_its_own_batch():
    layer = layer_with_parameters(5, track_running=False)
    x = RNG.normal(4, 2, (8, 5)).astype(np.float32)
    np.testing.assert_array_equal(layer.forward(x, training=False), layer.forward(x))
    assert layer.running_mean is None
    assert layer.updates == 0
    assert set(layer.state_dict()) == {"gamma", "beta"}


def test_a_tuple_of_axes_has_a_tuple_of_features():
    x = RNG.normal(3, 2, (6, 2, 5, 3)).astype(np.float32)
    layer = BatchNorm((2, 3), axis=(1, -1), momentum=1.0)
    y = layer.forward(x)
    flat = np.moveaxis(x, 2, 1).reshape(30, 6)
    m, mean, m2 = oracle.moments(flat)
    np.testing.assert_allclose(layer.running_mean, mean.reshape(2, 3), rtol=1e-6)
    np.testing.assert_allclose(layer.running_var, (m2 / (m - 1)).reshape(2, 3), rtol=1e-6)
    want = oracle.forward(flat).y.reshape(6, 5, 2, 3)
    np.testing.assert_allclose(y, np.moveaxis(want, 1, 2), atol=3e-6)


def test_momentum_0_keeps_and_momentum_1_replaces_even_beside_nan():
    x = RNG.normal(size=(4, 2)).astype(np.float32)
    broken = x.copy()
    broken[0, 0] = np.nan
    kept = BatchNorm(2, momentum=0)
    kept.forward(broken)
    assert (kept.running_mean == 0).all()
    assert (kept.running_var == 1).all()
    replaced = BatchNorm(2, momentum=1)
    replaced.forward(broken)
    assert np.isnan(replaced.running_mean[0])
    assert np.isfinite(replaced.running_mean[1])
    replaced.forward(x)
    np.testing.assert_allclose(replaced.running_mean, x.mean(0, dtype=np.float64), rtol=1e-6)


def test_nan_reaches_the_running_moments_of_its_own_channel():
    layer = BatchNorm(3)
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    x[2, 1] = np.inf
    layer.forward(x)
    assert np.isnan(layer.running_var).tolist() == [False, True, False]
    assert np.isfinite(layer.running_mean).tolist() == [True, False, True]


def test_a_variance_beyond_float32_is_an_error_before_anything_changes():
    x = (RNG.normal(size=(8, 2)) * 1e30).astype(np.float32)
    layer = BatchNorm(2)
    with pytest.raises(
        ArgumentError, match=r"running_var reaches .*, beyond float32; use a layer with dtype"
    ):
        layer.forward(x)
    assert layer.updates == 0
    assert (layer.running_mean == 0).all()
    wide = BatchNorm(2, momentum=1, dtype=np.float64)
    wide.forward(x)
    np.testing.assert_allclose(wide.running_var, np.var(x.astype(np.float64), 0, ddof=1), rtol=1e-12)


def test_a_forward_that_fails_changes_nothing():
    layer = layer_with_parameters(5)
    x = RNG.normal(size=(8, 5)).astype(np.float32)
    layer.forward(x)
    before = layer.state_dict()
    for wrong in (x[:1], x[:, :4], x.astype(int), x[0, 0]):
        with pytest.raises(xhat.errors.XhatError):
            layer.forward(wrong)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    assert layer.backward(x).shape == x.shape  # the gradient is still that of the forward that succeeded


def test_wrong_channels_are_noticed_without_parameters_too():
    layer = BatchNorm(5, affine=False, track_running=False)
    with pytest.raises(ShapeError) as caught:
        layer.forward(np.ones((8, 3), np.float32) * np.arange(8, dtype=np.float32)[:, None])
    assert str(caught.value) == "BatchNorm.forward: x (8, 3) has (3,) channels on axis 1, expected (5,)."
    with pytest.raises(ContextError):
        layer.backward(np.ones((8, 3), np.float32))


# Backward


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_those_of_finite_differences(activation, correction, masked, training):
    rng = np.random.default_rng(3)
    shape = (4, 3, 5)
    layer = BatchNorm(3, activation=activation, correction=correction, momentum=0, eps=0.1, dtype=np.float64)
    layer.gamma[...], layer.beta[...] = rng.uniform(0.5, 2, 3), rng.normal(size=3)
    layer.running_mean[...], layer.running_var[...] = rng.normal(size=3), rng.uniform(0.5, 2, 3)
    x, residual, dy = rng.normal(1, 2, shape), rng.normal(size=shape), rng.normal(size=shape)
    mask = rng.uniform(0.2, 2, (4, 1, 5)) if masked else None

    def loss():
        y = oracle.forward(
            x, layer.gamma, layer.beta, eps=0.1, correction=correction, mask=mask, residual=residual,
            activation=activation, fixed=None if training else (layer.running_mean, layer.running_var),
        ).y  # fmt: skip
        return (y * dy).sum()

    layer.forward(x, training=training, mask=mask, residual=residual)
    dx = layer.backward(dy)
    for name, got, array in [
        ("dx", dx, x),
        ("dgamma", layer.dgamma, layer.gamma),
        ("dbeta", layer.dbeta, layer.beta),
        ("dresidual", layer.dresidual, residual),
    ]:
        np.testing.assert_allclose(
            got, oracle.by_differences(loss, array, 1e-6), rtol=1e-6, atol=1e-8, err_msg=name
        )


def test_without_parameters_there_are_no_parameter_gradients():
    layer = BatchNorm(3, affine=False)
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    layer.backward(layer.forward(x))
    assert layer.gamma is None
    assert layer.dgamma is None
    assert layer.dbeta is None
    assert layer.dresidual is None


def test_updating_the_layer_between_forward_and_backward_leaves_the_gradient():
    x = RNG.normal(size=(8, 3))
    dy = RNG.normal(size=(8, 3))
    for training in (True, False):
        layer = BatchNorm(3, dtype=np.float64)
        layer.forward(x, training=training)
        want = layer.backward(dy)
        layer = BatchNorm(3, dtype=np.float64)
        layer.forward(x, training=training)
        layer.gamma *= 7
        layer.running_var *= 7
        np.testing.assert_array_equal(layer.backward(dy), want)
