"""The numbers of one layer by which the rules judge: deviations of statistics, scatter of batches. No judgement."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xhat import equations
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.tap import Tap

__all__ = ["Gap", "Signals", "deviation", "gap", "most", "off", "signals"]

Array = NDArray[np.float64]


class Signals(NamedTuple):
    """Of one layer over the batches; NaN where a number is unknown.

    shift         |pooled mean - running mean| / sigma, which 90 % of the channels do not exceed
    log_variance  |log((running_var + eps) / (var + eps))|, likewise
    icc           variance of the batches' means, or mean squares, over what shuffled samples would give (1: shuffled)
    noise         scatter of a batch's mean, in sigmas
    m             values per channel and batch
    """

    shift: float
    log_variance: float
    icc: float
    noise: float
    m: float


def most(values: Array) -> float:
    """What 90 % of the channels are below; NaN where no channel has a value."""
    known = values[~np.isnan(values)]
    return float(np.quantile(known, 0.9)) if len(known) else float("nan")


def deviation(layer: Layer, tap: Tap) -> tuple[float, float]:
    """shift and log_variance of the running statistics from the moments of this tap."""
    live = tap.pooled[0] > 0
    if not layer.tracks or not live.any():
        return float("nan"), float("nan")
    mean, var = (values[live] for values in layer.running)
    with np.errstate(all="ignore"):
        shift = np.abs(tap.pooled[1][live] - mean) / tap.sigma[live]
        ratio = np.abs(np.log((var + layer.eps) / (tap.variance[live] + layer.eps)))
    return float(np.quantile(shift, 0.9)), float(np.quantile(ratio, 0.9))


def off(layer: Layer, tap: Tap) -> float:
    """The larger of shift and log_variance: 0 for a layer that got nothing, infinite where one is not a number."""
    if not tap.batches:
        return 0.0
    found = deviation(layer, tap)
    return float("inf") if any(value != value for value in found) else max(found)


def signals(layer: Layer, tap: Tap, in_evaluation: Tap) -> Signals:
    """The signals of this layer by what it got by the batch's statistics, and in evaluation."""
    shift, log_variance = deviation(layer, tap)
    icc = noise = float("nan")
    if in_evaluation.scatter is not None:
        icc = in_evaluation.scatter.icc(in_evaluation.batches, layer.eps)
    batches = float(tap.batch_means[0].max())
    if batches > 1:
        with np.errstate(all="ignore"):
            between = equations.variance(tap.batch_means[2], batches, 1) / tap.sigma**2
        noise = float(np.sqrt(np.nanmean(between))) if np.isfinite(between).any() else noise
    m = float(tap.pooled[0].max()) / tap.calls if tap.calls else float("nan")
    return Signals(shift, log_variance, icc, noise, m)


class Gap(NamedTuple):
    """How much better one mode is than another: the mean gain over the batches, and its standard error."""

    before: float
    after: float
    gain: float
    error: float
    spread: float  # the standard deviation of `after` between batches
    better: float = 0.0  # the share of the batches that are better, 0 if there are fewer than eight

    @property
    def defined(self) -> bool:
        """Whether both modes ran on some batch."""
        return not np.isnan(self.after)


def gap(before: Array, after: Array, ran: NDArray[np.bool_]) -> Gap:
    """The paired comparison of these scores per batch, where both ran. NaN and infinity are worse than any number."""
    both = ran & np.isfinite(after)
    if not both.any():
        return Gap(*[float("nan")] * 5)
    a, b = before[both], after[both]
    if not np.isfinite(a).all():
        return Gap(float(np.mean(a)), float(np.mean(b)), float("inf"), 0.0, 0.0)
    n, d = len(a), a - b
    error, spread = (float(np.std(v, ddof=1)) if n > 1 else 0.0 for v in (d, b))
    better = float(np.mean(d > 0)) if n >= 8 else 0.0
    return Gap(float(a.mean()), float(b.mean()), float(d.mean()), error / np.sqrt(n), spread, better)
