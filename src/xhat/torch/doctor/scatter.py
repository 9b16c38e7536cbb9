"""How unlike batches are, by what one layer gets in evaluation. Nothing is judged here.

In evaluation a sample does not depend on the others of its batch, unless the batches were composed so. A layer behind
one that normalizes by the batch gets samples that do, in healthy models too.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xhat.torch.recorder import moments_of
from xhat.torch.sync.merge import Moments, merge

__all__ = ["Scatter", "finite", "nothing", "wide"]

Array = NDArray[np.float64]


def nothing(channels: int) -> Moments:
    """The moments of no values."""
    return np.zeros(channels), np.zeros(channels), np.zeros(channels)


def finite(moments: Moments) -> Moments:
    """The moments without the channels that have NaN or infinity, which count as having had no values."""
    m, mean, m2 = moments
    known = np.isfinite(mean) & np.isfinite(m2)
    return moments if known.all() else (m * known, np.where(known, mean, 0.0), np.where(known, m2, 0.0))


def wide(x: Tensor) -> Tensor:
    """x in float64, or where the device has none in float32."""
    return x.detach().float() if x.device.type == "mps" else x.detach().double()


class Scatter:
    """The moments of the means s1 and mean squares s2 of single samples (one sample is one index of dimension 0).

    samples   m, mean, m2 (2C,) of s1 and s2 of all samples
    batches   the same of their means in each batch, which weigh as the batch has samples
    """

    def __init__(self, channels: int) -> None:
        self.samples = self.batches = nothing(2 * channels)
        self._now: list[Moments] = []

    def see(self, x: Tensor) -> None:
        """The input (N, C, ...) of one call."""
        values = wide(x).flatten(2) if x.dim() > 2 else wide(x)[..., None]
        m, _, found = moments_of(torch.cat([values.mean(2), values.square().mean(2)], 1))
        mean, m2 = found.cpu().numpy()
        self._now.append((np.full(len(mean), m), mean, m2))

    def forget(self) -> None:
        """The calls of a forward pass that failed do not count."""
        self._now.clear()

    def end_of_batch(self) -> None:
        """Merges the calls of one forward pass."""
        for m, mean, m2 in map(finite, self._now):
            self.samples = merge(self.samples, (m, mean, m2))
            self.batches = merge(self.batches, (m, mean, np.zeros_like(m2)))
        self.forget()

    def icc(self, batches: int, eps: float) -> float:
        """The larger ratio of both kinds of values, of the variance between batches to what shuffling gives.

            sum of n (batch mean - mean)^2 / (batches - 1)     over     sum of (s - mean)^2 / (samples - 1)

        Channels weigh by the size of their values. NaN if there is one batch, or if each batch is one sample.
        """
        n = float(self.samples[0].max())
        if batches < 2 or not n > batches:
            return float("nan")
        squares = self.samples[1][len(self.samples[1]) // 2 :] + eps
        weights = np.concatenate([1 / squares, 1 / squares**2])
        with np.errstate(all="ignore"):
            between = np.nan_to_num(weights * self.batches[2] / (batches - 1), posinf=0).reshape(2, -1).sum(1)
            shuffled = np.nan_to_num(weights * self.samples[2] / (n - 1), posinf=0).reshape(2, -1).sum(1)
            ratios = between / shuffled
        known = ratios[np.isfinite(ratios)]
        return float(known.max()) if len(known) else float("nan")
