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
from xhat.torch.doctor.exactness import Errors, errors_of_call
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.padding import Padding
from xhat.torch.doctor.scatter import Scatter, finite, nothing
from xhat.torch.doctor.thresholds import LARGE_MEAN
from xhat.torch.nn import BatchNorm
from xhat.torch.recorder import moments_of
from xhat.torch.sync.merge import Moments, merge

__all__ = ["Tap", "tapped"]

Array = NDArray[np.float64]


class Tap:
    """The moments of the inputs of one layer, over the batches of one mode; in evaluation their scatter alone.

    halves         m, mean, m2 (C,) of all values of the even and of the odd batches, by merge, in float64
    pooled         the same of all batches
    scatter        how far samples and batches scatter, in evaluation; else None
    batch_means    the same of the means of batches, each with weight 1
    inverse_sizes  the sum of 1 / N over the batches
    by_call        pooled, of the first, second, ... call of the layer in a forward pass
    not_finite     calls with NaN or infinity in some channel, whose moments do not count
    calls          all calls; batches: those with at least one
    smallest       the least number of values per channel in a call
    unpadded       pooled, without padding, where some was found; padded: the share of the values that are padding
    dimensions     of the input
    errors         of the first call with a large mean
    """

    def __init__(self, layer: Layer, padding: Padding | None = None) -> None:
        self.layer, self.channels = layer, layer.channels
        self.padding = padding  # None: in evaluation
        self.scatter = Scatter(self.channels) if padding is None else None
        self.unpadded = nothing(self.channels)
        self.dimensions = 0
        self.errors: Errors | None = None
        self.halves = [nothing(self.channels), nothing(self.channels)]
        self.batch_means = nothing(self.channels)
        self.inverse_sizes = 0.0
        self.by_call: list[Moments] = []
        self.calls = self.batches = self.calls_now = 0
        self.smallest, self.not_finite = float("inf"), 0
        self.in_training = False  # whether a call has found the layer in training mode
        self.first_call = -1
        self._now: list[
            tuple[Moments, int, Moments]
        ] = []  # moments, samples, and the moments without padding

    def begin(self, training: bool, order: Iterator[int]) -> None:
        """A call of the layer in this mode."""
        self.calls_now += 1
        self.in_training |= training
        if self.first_call < 0:
            self.first_call = next(order)

    def see(self, x: Tensor, mask: Tensor | None) -> None:
        """The input of one call."""
        self.dimensions = x.dim()
        if self.scatter is not None:
            if mask is None:  # a mask does not tell samples apart
                self.scatter.see(x)
            return
        unpadded = found = self._moments(x, mask)
        if x.dim() > 2 and mask is None and self.padding is not None:
            weights = self.padding.weights(x)
            unpadded = found if weights is None else self._moments(x, weights)
        self._now.append((found, len(x), unpadded))

    def _moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        m, _, found = moments_of(x.detach(), mask)
        mean, m2 = found.cpu().numpy()
        return np.full(self.channels, m), mean, m2

    def check(self, x: Tensor, y: Any, training: bool) -> None:
        """Measures the errors of the first call's result, where the mean is large."""
        if self.errors is not None or self.calls or len(self._now) > 1:
            return
        (m, mean, m2), *_ = self._now[-1] if self._now else (self._moments(x),)
        with np.errstate(all="ignore"):
            rstd = equations.reciprocal_std(equations.variance(m2, m), self.layer.eps, np.sqrt)
        if np.nanmax(np.abs(mean) * rstd, initial=0) > LARGE_MEAN:
            self.errors = errors_of_call(self.layer, x, y, mean, m2, float(m[0]), training)

    @property
    def degenerate(self) -> bool:
        """Whether a call of the present forward pass had one value per channel."""
        return any(moments[0].max() <= 1 for moments, *_ in self._now)

    def forget(self) -> None:
        """The calls of a forward pass that failed do not count."""
        self._now.clear()
        if self.scatter is not None:
            self.scatter.forget()
        self.calls_now = 0

    def end_of_batch(self, index: int) -> None:
        """Merges the calls of the forward pass of the batch of this index."""
        if self.scatter is not None:
            self.scatter.end_of_batch()
        for k, (found, samples, unpadded) in enumerate(self._now):
            moments = finite(found)
            self.not_finite += moments is not found
            if k == len(self.by_call):
                self.by_call.append(nothing(self.channels))
            self.by_call[k] = merge(self.by_call[k], moments)
            self.halves[index % 2] = merge(self.halves[index % 2], moments)
            self.unpadded = merge(self.unpadded, finite(unpadded))
            if moments[0].any():
                one = np.ones(self.channels), moments[1], np.zeros(self.channels)
                self.batch_means = merge(self.batch_means, one)
                self.inverse_sizes += 1 / max(samples, 1)
                self.smallest = min(self.smallest, float(moments[0][0]))
        self.calls += self.calls_now
        self.batches += bool(self.calls_now if self.scatter else self._now)
        self.forget()

    @property
    def pooled(self) -> Moments:
        """The moments of all batches."""
        return merge(*self.halves)

    @property
    def padded(self) -> float:
        """The share of the values that are padding."""
        m = self.pooled[0].max()
        return float(1 - self.unpadded[0].max() / m) if m else 0.0

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
            x: Any = next(iter((*args, *kwargs.values())), None)
            known = isinstance(x, Tensor) and x.dim() >= 2 and x.shape[1] == tap.channels and x.numel()
            mask = (
                kwargs.get("mask", args[2] if len(args) > 2 else None)
                if isinstance(layer, BatchNorm)
                else None
            )
            tap.begin(layer.training, order)
            if known:
                tap.see(x, mask)
            y = forward(*args, **kwargs)
            if known and mask is None:
                tap.check(x, y, layer.training)
            return y

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
