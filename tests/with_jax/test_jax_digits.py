"""A small convolutional network learns digits, with Flax's layer and with ours: the losses are the same."""

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")
optax = pytest.importorskip("optax")
datasets = pytest.importorskip("sklearn.datasets")

import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

import xhat.flax  # noqa: E402

STEPS = 60


def kernel(key: Any, shape: tuple[int, ...], *_: Any) -> Any:
    """Flax's own initializer takes longer to compile than the network."""
    return np.random.default_rng(len(shape)).normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)


class Net(nnx.Module):
    """Two convolutions with batch norm and ReLU, and a linear layer."""

    def __init__(self, norm: Any) -> None:
        rngs = nnx.Rngs(0)
        self.first, self.second = (
            nnx.Conv(i, 8, (3, 3), strides=2, kernel_init=kernel, rngs=rngs) for i in (1, 8)
        )
        self.norms = nnx.List([norm(8, momentum=0.9, rngs=rngs) for _ in range(2)])
        self.last = nnx.Linear(32, 10, kernel_init=kernel, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """The logits of images (N, 8, 8, 1)."""
        x = nnx.relu(self.norms[0](self.first(x)))
        x = nnx.relu(self.norms[1](self.second(x)))
        return self.last(x.reshape(len(x), -1))


def trained(norm: Any, x: Any, labels: Any, held: Any) -> tuple[Any, Any]:
    """The losses of all steps, and the logits of held-out images by the running statistics."""
    net = Net(norm)
    optimizer = nnx.Optimizer(net, optax.sgd(0.05, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(net: Any, optimizer: Any, x: Any, labels: Any) -> Any:
        def loss(net: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(net(x), labels).mean()

        value, grads = nnx.value_and_grad(loss)(net)
        optimizer.update(net, grads)
        return value

    net.train()
    rows = np.random.default_rng(0).integers(len(x), size=(STEPS, 64))
    losses = [float(step(net, optimizer, x[r], labels[r])) for r in rows]
    net.eval()
    return np.array(losses), np.asarray(nnx.jit(lambda net, x: net(x))(net, held))


def test_the_losses_are_those_of_flaxs_layer() -> None:
    digits = datasets.load_digits()
    order = np.random.default_rng(1).permutation(len(digits.target))
    x = (digits.images[order, :, :, None] / 16).astype(np.float32)
    labels = jnp.asarray(digits.target[order])
    ours, theirs = (
        trained(norm, x[:1400], labels[:1400], x[1400:]) for norm in (xhat.flax.nnx.BatchNorm, nnx.BatchNorm)
    )
    np.testing.assert_allclose(ours[0][:10], theirs[0][:10], rtol=1e-4)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=2e-2)  # rounding grows with each step
    right = [(logits.argmax(1) == digits.target[order][1400:]).mean() for _, logits in (ours, theirs)]
    print(f"\nlosses {ours[0][-1]:.4f} and {theirs[0][-1]:.4f}; right {right[0]:.3f} and {right[1]:.3f}")
    assert min(right) > 0.85 and abs(right[0] - right[1]) < 0.01
