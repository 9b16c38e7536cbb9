"""The residual network, damaged in three ways that happen to people; then diagnosed and treated. Nothing is printed."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import xhat.torch as xt
from xhat.demo.network import Array
from xhat.demo.residual import BATCH, MOMENTUM, RATE, accuracy_of, images, made, step
from xhat.demo.training import Digits, batches

__all__ = ["Case", "cases", "sorted_batches"]

SEEN = 6  # batches that the doctor sees
DECAY = 0.9  # of the average of the weights
SLOW = 0.001  # the momentum that is too small for so few steps
SORTED = 64  # digits in a batch that is sorted by class
DAMAGES = ("averaged weights", f"momentum {SLOW:g}", "sorted batches")


class Case(NamedTuple):
    """A damaged network: what the doctor says, and the share of the held-out digits that it reads before and after.

    treated   what `Diagnosis.treat` applied; if that is nothing, the network was trained on with shuffled batches
    """

    name: str
    diagnosis: xt.Diagnosis
    treated: list[tuple[str, str]]
    before: float
    after: float


def cases(digits: Digits, *, steps: int, seed: int, advance: Callable[[], None]) -> Iterator[Case]:
    """Each network trained for `steps`, diagnosed on batches like those of its training, and treated.

    `advance` is called after each step: 4 steps times, if all cases but the last are treated by the doctor.
    """
    x, labels = images(digits.x), torch.from_numpy(digits.labels).long()

    def train(network: nn.Module, order: Iterator[Array], after: Callable[[], None] = lambda: None) -> None:
        optimizer = torch.optim.SGD(network.parameters(), lr=RATE, momentum=MOMENTUM)
        for _, rows in zip(range(steps), order, strict=False):
            step(network, optimizer, x[rows], labels[rows])
            after()
            advance()

    def shuffled() -> Iterator[Array]:
        return batches(len(x), seed, BATCH)

    for name, network, order in _damaged(train, shuffled, digits, seed):
        before = accuracy_of(network, digits)
        seen = [(x[rows], labels[rows]) for _, rows in zip(range(SEEN), order, strict=False)]
        diagnosis = xt.diagnose(network, seen, _loss, progress=False)
        treated = diagnosis.treat().applied
        if not treated:
            train(network, shuffled())
        yield Case(name, diagnosis, treated, before, accuracy_of(network, digits))


def _damaged(
    train: Callable[..., None], shuffled: Callable[[], Iterator[Array]], digits: Digits, seed: int
) -> Iterator[tuple[str, nn.Module, Iterator[Array]]]:
    """The three networks, each with the order of its batches."""
    network, averaged = made(seed), made(seed)

    def average() -> None:
        for mean, weight in zip(averaged.parameters(), network.parameters(), strict=True):
            mean.data.lerp_(weight.data, 1 - DECAY)  # parameters() has no running statistics

    train(network, shuffled(), average)
    yield DAMAGES[0], averaged, shuffled()

    network = made(seed)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = SLOW
    train(network, shuffled())
    yield DAMAGES[1], network, shuffled()

    network = made(seed)
    train(network, sorted_batches(digits.labels, seed))
    yield DAMAGES[2], network, sorted_batches(digits.labels, seed + 1)


def sorted_batches(labels: Array, seed: int) -> Iterator[Array]:
    """Indices of batches of digits in the order of their classes; the batches of an epoch come in random order."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        for start in rng.permutation(np.arange(0, len(labels) - SORTED + 1, SORTED)):
            yield order[start : start + SORTED]


def _loss(output: Tensor, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(output, batch[1])
