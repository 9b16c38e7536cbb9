"""A Keras model, converted: the same results near zero, exact ones far from it, and statistics from PyTorch."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is imported

import keras
import numpy as np

import xhat
import xhat.keras

x = np.random.default_rng(0).normal(size=(64, 9, 3)).astype(np.float32)
model = keras.Sequential([keras.Input((9, 3)), keras.layers.BatchNormalization(name="bn")])
theirs = keras.ops.convert_to_numpy(model(x, training=True))
model, changes = xhat.keras.convert(model)
print(*changes)
np.testing.assert_allclose(model(x, training=True), theirs, atol=1e-5)


def error(layer, x):
    """The largest error of y in training, against float64."""
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((0, 1))) / np.sqrt(wide.var((0, 1)) + layer.epsilon)
    return np.abs(np.asarray(layer(x, training=True)) - expected).max()


# 1. Far from zero.
for offset in (0, 1e4, 1e6):
    far = (x + offset).astype(np.float32)
    of_theirs, of_ours = (error(layer, far) for layer in (keras.layers.BatchNormalization(), model.layers[0]))
    print(f"offset {offset:g}: y is off by {of_theirs:.0e} in Keras's layer, by {of_ours:.0e} in ours")
    assert of_ours < 1e-5

# 2. Sequences of different lengths, the last of which is all padding.
lengths = np.array([9, 4, 0])
layer = xhat.keras.BatchNormalization(momentum=0)
layer(x[:3], training=True, mask=np.arange(9) < lengths[:, None])
valid = np.concatenate([row[:n] for row, n in zip(x, lengths, strict=False)])
np.testing.assert_allclose(layer.moving_mean, valid.mean(0), atol=1e-6)
print("moving mean without padding:", np.asarray(layer.moving_mean))

# 3. The state of a layer of PyTorch, and the options with which Keras's layer computes the same.
state = {
    "weight": np.ones(3),
    "bias": np.zeros(3),
    "running_mean": np.arange(3.0),
    "running_var": np.full(3, 2.0),
}
converted = xhat.convert_state(state, "torch", "keras")
print(*converted.notes, sep="\n")
layer = xhat.keras.BatchNormalization(**converted.options)
layer.build(x.shape)
for weight in layer.weights:
    weight.assign(converted.state[weight.name])
np.testing.assert_allclose(layer(x), (x - np.arange(3)) / np.sqrt(2 + 1e-5), atol=1e-5)
