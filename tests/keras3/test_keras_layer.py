"""xhat.keras beside Keras's layer: options, checkpoints, whole models, errors."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from on_backend import BACKEND, KERAS, XHAT, built, f64, run, trains
from sklearn.datasets import load_digits

import xhat.keras
from xhat.errors import DtypeError, ShapeError

needs_fit = pytest.mark.skipif(not trains, reason="the numpy backend has no fit")


def x_of(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(1, 2, size=shape).astype(np.float32)


def network(norm: type, size: int = 8) -> Any:
    """Convolutions, a batch norm by itself and one inside TimeDistributed, in a functional model."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 1))
    h = layers.ReLU()(norm(name="first")(layers.Conv2D(6, 3, strides=2, use_bias=False)(image)))
    h = layers.TimeDistributed(norm(name="second"))(h)
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(h)))


class Subclassed(keras.Model):
    def __init__(self, norm: type) -> None:
        super().__init__()
        self.norms = [norm(), norm(axis=1)]

    def call(self, x: Any, training: bool = False) -> Any:
        for norm in self.norms:
            x = norm(x, training=training)
        return x


def test_options_and_config_are_those_of_keras() -> None:
    options = {
        "axis": 1,
        "momentum": 0.8,
        "epsilon": 1e-4,
        "scale": False,
        "beta_initializer": "ones",
        "name": "bn",
    }
    theirs, ours = KERAS(**options), XHAT(**options)
    assert ours.get_config() == theirs.get_config()
    assert XHAT.from_config(theirs.get_config()).get_config() == theirs.get_config()
    for layer in (theirs, ours):
        layer.build((None, 4, 3))
    assert [w.path for w in ours.weights] == [w.path for w in theirs.weights]


@pytest.mark.parametrize(
    "options", [{"renorm": True}, {"scale": False}, {"center": False}, {"trainable": False}]
)
@pytest.mark.parametrize("training", [True, False])
def test_results_are_those_of_keras(options: dict[str, Any], training: bool) -> None:
    x = x_of(7, 5, 3)
    theirs, ours = (run(built(kind, x, **options), x, training=training) for kind in (KERAS, XHAT))
    for a, b in zip(theirs, ours, strict=True):
        assert (a is b is None) or np.allclose(a, b, rtol=1e-5, atol=1e-5)


def test_checkpoints_of_weights_load_in_both_directions(tmp_path: Any) -> None:
    theirs, ours = network(KERAS), network(XHAT)
    for source, target in ((theirs, ours), (ours, theirs)):
        for w in source.weights:
            w.assign(np.random.default_rng(0).uniform(0.5, 2, w.shape))
        source.save_weights(tmp_path / "model.weights.h5")
        target.load_weights(tmp_path / "model.weights.h5")
        assert all(
            np.array_equal(f64(a), f64(b)) for a, b in zip(source.weights, target.weights, strict=True)
        )


def test_archives_of_models_load_in_both_directions(tmp_path: Any) -> None:
    x = x_of(5, 8, 8, 1)
    ours = network(XHAT)
    ours(x, training=True)
    ours.save(tmp_path / "ours.keras")
    loaded = keras.models.load_model(tmp_path / "ours.keras")
    assert type(loaded.get_layer("first")) is XHAT
    xhat.keras.revert(loaded)
    loaded.save(tmp_path / "theirs.keras")
    theirs = keras.models.load_model(tmp_path / "theirs.keras")
    assert type(theirs.get_layer("first")) is KERAS
    again, changes = xhat.keras.convert(theirs)
    assert again is theirs and type(again.get_layer("first")) is XHAT
    assert [change.split(": ")[1] for change in changes] == [
        "keras.layers.BatchNormalization -> xhat.keras.BatchNormalization"
    ] * 2
    assert np.array_equal(f64(again(x)), f64(ours(x)))


def test_a_subclassed_model_is_converted_and_a_subclass_of_the_layer_is_left() -> None:
    class Own(KERAS):
        pass

    model = Subclassed(KERAS)
    model.norms.append(Own())
    _, changes = xhat.keras.convert(model)
    assert [type(norm) for norm in model.norms] == [XHAT, XHAT, Own]
    assert len(changes) == 2 and xhat.keras.convert(model)[1] == []


def test_a_model_is_cloned_with_our_layers() -> None:
    def cloned(layer: Any) -> Any:
        kind = XHAT if type(layer) is KERAS else type(layer)
        return kind.from_config(layer.get_config())

    model = network(KERAS)
    clone = keras.models.clone_model(model, clone_function=cloned)
    assert type(clone.get_layer("first")) is XHAT


@needs_fit
def test_a_network_learns_digits_with_the_losses_of_keras() -> None:
    digits = load_digits()
    x, y = (digits.images[:640, ..., None] / 16).astype(np.float32), digits.target[:640]
    losses, models = {}, {}
    for norm in (KERAS, XHAT):
        models[norm] = model = network(norm)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
        losses[norm] = model.fit(x, y, batch_size=64, epochs=2, shuffle=False, verbose=0).history["loss"]
    assert losses[KERAS][1] < losses[KERAS][0] - 0.1
    assert np.allclose(losses[XHAT], losses[KERAS], rtol=1e-5)
    xhat.keras.convert(models[KERAS])
    assert models[KERAS].train_function is None  # so that the next fit compiles it anew
    assert np.allclose(*(f64(model(x[:64])) for model in models.values()), rtol=1e-4, atol=1e-5)


def test_two_calls_in_one_model_move_the_statistics_twice() -> None:
    x = x_of(6, 3)
    layer = XHAT(momentum=0.5)
    image = keras.Input((3,))
    keras.Model(image, layer(layer(image)))(x, training=True)
    first = x.astype(np.float64)
    y = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-3)
    assert np.allclose(f64(layer.moving_mean), 0.25 * first.mean(0) + 0.5 * y.mean(0), atol=1e-6)
    assert np.allclose(f64(layer.moving_variance), 0.25 + 0.25 * first.var(0) + 0.5 * y.var(0), atol=1e-6)


def test_values_that_overflow_give_nan_and_not_beta() -> None:
    x = np.array([[3e38], [-3e38], [1e38]], np.float32)
    if BACKEND != "numpy":  # it has float64
        assert np.isnan(run(built(XHAT, x), x).y).all()
    if BACKEND == "jax":
        assert not np.any(run(built(KERAS, x), x).y)  # beta


@pytest.mark.parametrize(
    ("x", "mask", "error", "sentence"),
    [
        (
            (4, 5, 3),
            (4, 5, 3),
            ShapeError,
            "mask (4, 5, 3) has 3 dimensions, expected 2 for inputs (4, 5, 3)",
        ),
        (
            (4, 5, 3),
            (5, 4),
            ShapeError,
            "mask (5, 4) does not fit inputs (4, 5, 3), expected (4, 5), or 1 in any place.",
        ),
    ],
)
def test_a_wrong_mask_has_its_sentence_and_moves_nothing(
    x: Any, mask: Any, error: Any, sentence: str
) -> None:
    layer = built(XHAT, x_of(*x))
    with pytest.raises(error) as raised:
        layer(x_of(*x), training=True, mask=np.ones(mask, bool))
    assert f"BatchNormalization: {sentence}" in str(raised.value)
    assert np.array_equal(f64(layer.moving_mean), np.zeros(3))
    with pytest.raises((ValueError, RuntimeError)) as raised:
        built(KERAS, x_of(*x))(x_of(*x), training=True, mask=np.ones(mask, bool))
    assert sentence not in str(raised.value)


def test_an_axis_that_x_does_not_have() -> None:
    with pytest.raises(ShapeError, match=r"BatchNormalization: x \(4, 3\) has no axis 2\."):
        XHAT(axis=2)(x_of(4, 3))
    with pytest.raises(IndexError, match="tuple index out of range"):
        KERAS(axis=2)(x_of(4, 3))


def test_complex_numbers() -> None:
    layer = built(XHAT, x_of(4, 3))
    with pytest.raises(DtypeError, match="mask has dtype"):
        layer.call(keras.ops.convert_to_tensor(x_of(4, 3)), training=True, mask=np.ones(4, np.complex64))
