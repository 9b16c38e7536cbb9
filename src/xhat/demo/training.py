"""The digits, the training, and the check of its gradients. Nothing is printed here."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

from xhat import Context
from xhat.demo.network import Array, Network, cross_entropy
from xhat.numpy import BatchNorm

__all__ = [
    "BATCH",
    "EVALUATE_EVERY",
    "SIZES",
    "TARGET",
    "Digits",
    "Run",
    "batches",
    "check_gradients",
    "last_batch_norm",
    "load",
    "train",
]

SIZES = [64, 64, 64, 64, 10]  # 8 x 8 pixels, three hidden layers, ten digits
TARGET = 0.95
BATCH = 64
EVALUATE_EVERY = 5  # steps between evaluations on the held-out digits


class Digits(NamedTuple):
    """Scanned digits as rows of 64 pixels from 0 to 1, a quarter of them held out from training."""

    x: Array
    labels: Array
    held_x: Array
    held_labels: Array


@dataclass
class Run:
    """One training: its network and its measurements."""

    network: Network
    rate: float
    losses: list[float] = field(default_factory=list)
    accuracies: list[tuple[int, float]] = field(default_factory=list)  # (steps, share of held-out digits)
    seconds: float = 0.0  # of training steps, without the evaluations

    @property
    def steps_to_target(self) -> int | None:
        """The number of steps after which the accuracy first reached TARGET, or None."""
        return next((step for step, accuracy in self.accuracies if accuracy >= TARGET), None)


def load(seed: int, dtype: type = np.float32) -> Digits:
    """The 1,797 digits that come with scikit-learn (UCI, Alpaydin and Kaynak, 1998), split by the seed."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    x, labels = (digits.data[order] / 16).astype(dtype), digits.target[order]
    held = len(x) // 4
    return Digits(x[held:], labels[held:], x[:held], labels[:held])


def batches(n: int, seed: int, size: int = BATCH) -> Iterator[Array]:
    """Indices of batches, reproducible by the seed; no digit occurs twice in an epoch."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


def train(
    digits: Digits, *, batch_norm: bool, rate: float, steps: int, seed: int, advance: Callable[[], None]
) -> Run:
    """Plain gradient descent, ``p -= rate * dp``; `advance` is called after each step."""
    run = Run(Network(SIZES, batch_norm=batch_norm, seed=seed), rate)
    network = run.network
    with np.errstate(over="ignore", invalid="ignore"):  # training diverges to NaN if the rate is too large
        for step, rows in zip(range(1, steps + 1), batches(len(digits.x), seed), strict=False):
            start = perf_counter()
            loss, dlogits = cross_entropy(network.forward(digits.x[rows]), digits.labels[rows])
            network.backward(dlogits)
            for _, value, gradient in network.parameters():
                value -= rate * gradient
            run.seconds += perf_counter() - start
            run.losses.append(loss)
            if step % EVALUATE_EVERY == 0 or step == steps:
                logits = network.forward(digits.held_x, training=False)
                run.accuracies.append((step, float(np.mean(logits.argmax(axis=1) == digits.held_labels))))
            advance()
    return run


def last_batch_norm(network: Network, digits: Digits) -> tuple[Context, Array]:
    """The context of the last batch-norm layer for the first batch, and its dy.

    Computed on a copy, so that the running moments of the network do not change.
    """
    network = deepcopy(network)
    dy = cross_entropy(network.forward(digits.x[:BATCH]), digits.labels[:BATCH])[1]
    for layer in reversed(network.layers):
        if isinstance(layer, BatchNorm) and layer.context is not None:
            return layer.context, dy
        dy = layer.backward(dy)
    raise ValueError("last_batch_norm: the network has none.")


class Checked(NamedTuple):
    """Gradients of one kind: the number of compared elements, and the largest error relative to the largest element."""

    name: str
    values: int
    error: float


def check_gradients(seed: int, *, per_array: int = 64, step: float = 1e-5) -> list[Checked]:
    """Closed form against central differences (J(p + h) - J(p - h)) / 2h, in float64, on real digits.

    At most `per_array` elements of the pixels and of each parameter are compared, drawn by the seed.
    """
    digits = load(seed, np.float64)
    x, labels = digits.x[:32], digits.labels[:32]
    network = Network(SIZES, batch_norm=True, seed=seed, dtype=np.float64)
    dx = network.backward(cross_entropy(network.forward(x), labels)[1])
    rng = np.random.default_rng(seed)
    checked: dict[str, Checked] = {}
    for name, value, closed in [*network.parameters(), ("pixels", x, dx)]:
        places = rng.choice(value.size, min(per_array, value.size), replace=False)
        flat, worst = value.reshape(-1), 0.0
        for place in places:
            numeric = _difference(lambda: cross_entropy(network.forward(x), labels)[0], flat, place, step)
            worst = max(worst, abs(numeric - closed.flat[place]) / np.abs(closed).max())
        before = checked.get(name, Checked(name, 0, 0.0))
        checked[name] = Checked(name, before.values + len(places), max(before.error, worst))
    return list(checked.values())


def _difference(loss: Callable[[], float], flat: Array, place: int, step: float) -> float:
    kept = flat[place]
    flat[place] = kept + step
    above = loss()
    flat[place] = kept - step
    below = loss()
    flat[place] = kept
    return (above - below) / (2 * step)
