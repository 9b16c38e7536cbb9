"""Images of unequal width in Flax: the padding is masked, and the model reads the same digits with any padding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from xhat.flax.nnx import BatchNorm

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.images[order, :, :, None] / 16).astype(np.float32)
labels = jnp.asarray(digits.target[order])


def padded(images: np.ndarray, width: int, value: float) -> tuple[np.ndarray, np.ndarray]:
    """The images with columns of this value on the right, and the mask of those that are theirs."""
    more = [(0, 0), (0, 0), (0, width - images.shape[2]), (0, 0)]
    return np.pad(images, more, constant_values=value), (np.arange(width) < images.shape[2])[:, None]


class Net(nnx.Module):
    """A convolution of single pixels' rows, batch norm, and a linear layer on what is no padding."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.lift = nnx.Conv(1, 16, (5, 1), rngs=rngs)
        self.norm = BatchNorm(16, momentum=0.9, rngs=rngs)
        self.last = nnx.Linear(8 * 8 * 16, 10, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """The logits."""
        x = nnx.relu(self.norm(self.lift(x), mask=mask))
        return self.last(x[:, :, :8].reshape(len(x), -1))


@nnx.jit
def step(net: Net, optimizer: nnx.Optimizer, x: jax.Array, mask: jax.Array, labels: jax.Array) -> jax.Array:
    """One training step; the loss."""

    def loss(net: Net) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(net(x, mask), labels).mean()

    value, grads = nnx.value_and_grad(loss)(net)
    optimizer.update(net, grads)
    return value


for value in (0.0, 1000.0):
    net = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(net, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    x, mask = padded(images, 12, value)
    for rows in np.random.default_rng(1).integers(1400, size=(40, 64)):
        last = step(net, optimizer, x[rows], mask, labels[rows])
    net.eval()
    right = (nnx.jit(Net.__call__)(net, x[1400:], mask).argmax(1) == labels[1400:]).mean()
    print(f"padding of {value:6}: loss {last:.6f}, held-out digits read {right:.3f}")
