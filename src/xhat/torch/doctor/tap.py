"""What one batch norm gets while the model runs: moments per batch, as sums of O(C); no batch is kept.

What the numbers mean must never be decided here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from xhat import equations
from xhat.torch.doctor.layers import Layer
from xhat.torch.nn import BatchNorm
from xhat.torch.recorder import moments_of
from xhat.torch.sync.merge import Moments, merge

__all__ = ["Tap", "tapped"]

Array = NDArray[np.float64]


def nothing(channels: int) -> Moments:
    """The moments of no values."""
    return np.zeros(channels), np.zeros(channels), np.zeros(channels)


class Tap:
    """The moments of the inputs of one layer, over the batches of one mode.

    halves         m, mean, m2 (C,) of all values of the even and of the odd batches, by merge, in float64
    pooled         the same of all batches
    samples        the same of the means of single samples (one sample is one index of dimension 0)
    batch_means    the same of the means of batches, each with weight 1
    inverse_sizes  the sum of 1 / N over the batches
    by_call        pooled, of the first, second, ... call of the layer in a forward pass
    calls          all calls; batches: those with at least one
    smallest       the least number of values per channel in a call
    """

    def __init__(self, layer: Layer) -> None:
        self.layer, self.channels = layer, layer.channels
        self.halves = [nothing(self.channels), nothing(self.channels)]
        self.samples = self.batch_means = nothing(self.channels)
        self.inverse_sizes = 0.0
        self.by_call: list[Moments] = []
        self.calls = self.batches = 0
        self.smallest = float("inf")
        self.in_training = False  # whether a call has found the layer in training mode
        self.first_call = -1
        self._now: list[tuple[Moments, int, Moments]] = []

    def see(self, x: Tensor, mask: Tensor | None) -> None:
        """The input of one call."""
        m, _, found = moments_of(x.detach(), mask)
        of_batch = np.full(self.channels, m), *found.cpu().numpy()
        if (
            x.dim() == 2 or mask is not None
        ):  # a sample's mean is its value; with a mask, samples are not told apart
            means = of_batch
        else:
            _, _, moments = moments_of(x.detach().double().flatten(2).mean(2), None)
            means = np.full(self.channels, float(len(x))), *moments.cpu().numpy()
        self._now.append((of_batch, len(x), means))

    @property
    def degenerate(self) -> bool:
        """Whether a call of the present forward pass had one value per channel."""
        return any(moments[0].max() <= 1 for moments, *_ in self._now)

    def forget(self) -> None:
        """The calls of a forward pass that failed do not count."""
        self._now.clear()

    def end_of_batch(self, index: int) -> None:
        """Merges the calls of the forward pass of the batch of this index."""
        for k, (moments, samples, means) in enumerate(self._now):
            if k == len(self.by_call):
                self.by_call.append(nothing(self.channels))
            self.by_call[k] = merge(self.by_call[k], moments)
            self.halves[index % 2] = merge(self.halves[index % 2], moments)
            self.samples = merge(self.samples, means)
            if moments[0].any():
                one = np.ones(self.channels), moments[1], np.zeros(self.channels)
                self.batch_means = merge(self.batch_means, one)
                self.inverse_sizes += 1 / max(samples, 1)
                self.smallest = min(self.smallest, float(moments[0][0]))
        self.calls += len(self._now)
        self.batches += bool(self._now)
        self._now.clear()

    @property
    def pooled(self) -> Moments:
        """The moments of all batches."""
        return merge(*self.halves)

    @property
    def variance(self) -> Array:
        """var (C,) of all values; NaN where there are none."""
        m, _, m2 = self.pooled
        with np.errstate(all="ignore"):
            found: Array = equations.variance(m2, m)
        return found

    @property
    def sigma(self) -> Array:
        """sqrt(var + eps) (C,)."""
        found: Array = 1 / equations.reciprocal_std(self.variance, self.layer.eps, np.sqrt)
        return found


@contextmanager
def tapped(taps: list[Tap]) -> Iterator[None]:
    """Surrounds passes in which the inputs of these layers are seen: each layer's forward is replaced on the module."""
    order = iter(range(1 << 62))

    def replacement(tap: Tap) -> Any:
        layer = tap.layer.module
        forward = layer.forward

        def seen(*args: Any, **kwargs: Any) -> Any:
            x = next(iter((*args, *kwargs.values())), None)
            if isinstance(x, Tensor) and x.dim() >= 2 and x.shape[1] == tap.channels:
                weighed = isinstance(layer, BatchNorm)
                tap.see(x, kwargs.get("mask", args[2] if len(args) > 2 else None) if weighed else None)
            tap.in_training |= bool(layer.training)
            if tap.first_call < 0:
                tap.first_call = next(order)
            return forward(*args, **kwargs)

        return seen

    before = [(tap.layer.module, vars(tap.layer.module).get("forward")) for tap in taps]
    try:
        for tap in taps:
            vars(tap.layer.module)["forward"] = replacement(tap)
        yield
    finally:
        for module, forward in before:
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward
