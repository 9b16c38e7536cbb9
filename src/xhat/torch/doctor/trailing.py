"""Running statistics that a watch found behind the weights: initial values that are left, and an average too slow.

Nothing is counted or run here.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from xhat.torch.doctor.findings import Finding
from xhat.torch.doctor.seen import Seen
from xhat.torch.doctor.thresholds import LAG_MEAN, LAG_VARIANCE, LEFT

if TYPE_CHECKING:
    from xhat.torch.doctor.watch import Copy, Watch

__all__ = ["not_converged", "trailing"]


def _left(seen: Seen) -> tuple[float, int] | None:
    """The weight that the initial 0 and 1 still have, and the batches so far; None if it is unknown."""
    momentum, counter = seen.module.momentum, seen.module._buffers.get("num_batches_tracked")
    if counter is None or not momentum or seen.tracked != 0 or int(counter) < seen.moved:
        return None  # trained before, or reset since
    return float((1 - momentum) ** int(counter)), int(counter)


def not_converged(watch: "Watch") -> Iterator[Finding]:
    """Layers that began untrained, and have seen too few batches for their momentum."""
    left = {seen: found for seen in watch.layers if (found := _left(seen)) and seen.moved and found[0] > LEFT}
    if left:
        layers = sorted(left, key=lambda seen: -left[seen][0])
        (weight, batches), momentum = left[layers[0]], float(layers[0].module.momentum)
        needed = math.ceil(math.log(LEFT) / math.log1p(-momentum))
        yield Finding(
            cause="statistics-not-converged",
            severity="risk",
            layers=tuple(seen.path for seen in layers),
            symptom=f"After {batches} batches at momentum {momentum:g}, the initial values are still {weight:.0%} of "
            f"the running statistics, and below {LEFT:.0%} after {needed}.",
            evidence={"left": weight, "batches": batches, "momentum": momentum, "needed": needed},
            why="The initial mean 0 and variance 1 lose their weight as (1 - momentum)^batches.",
            remedy="Train longer before evaluation, use a larger momentum, or recalibrate.",
            code="xt.recalibrate(model.eval(), batches)",
        )


class Lag(NamedTuple):
    """How far running statistics are from recent batches: the mean in deviations, and |log| of the variances' ratio."""

    mean: float
    log_variance: float

    @property
    def excess(self) -> float:
        """Above 1: one of the two is beyond its threshold."""
        return max(self.mean / LAG_MEAN, self.log_variance / LAG_VARIANCE)


def _lag(seen: Seen, before: "Copy", after: "Copy") -> Lag | None:
    """The median channel's lag at the second of two copies, n batches after the first; None if it is unknown.

        running1 = q running0 + (1 - q) recent     q = (1 - momentum)^n

    where recent is the average of the n batches with the weights of running1. So recent follows from the two copies.
    What is left of the initial 0 and 1 is another finding, and taken out of running1 first.
    """
    momentum = seen.module.momentum
    if (
        not (seen.path in before.statistics and seen.path in after.statistics)
        or not momentum
        or not 0 < momentum < 1
    ):
        return None
    (mean0, var0, n0), (mean1, var1, n1) = before.statistics[seen.path], after.statistics[seen.path]
    n = int(n1) - int(n0)
    if n <= 0 or mean0.shape != mean1.shape:  # it stood still, or was reset, or remade
        return None
    q, eps = (1 - momentum) ** n, float(vars(seen.module)["eps"])
    recent = [
        (now.cpu().double() - q * then.cpu().double()) / (1 - q)
        for then, now in ((mean0, mean1), (var0, var1))
    ]
    left = (1 - momentum) ** int(n1) if seen.tracked == 0 else 0.0
    mean, var = mean1.cpu().double() / (1 - left), ((var1.cpu().double() - left) / (1 - left)).clamp(min=0)
    shift = (recent[0] - mean).abs() / (var + eps).sqrt()
    ratio = ((recent[1].clamp(min=0) + eps) / (var + eps)).log().abs()
    return Lag(float(shift.median()), float(ratio.median()))


def trailing(watch: "Watch") -> Iterator[Finding]:
    """Statistics that are far from those of recent batches, twice in a row, because the weights move too fast."""
    if len(watch.copies) < 3 or watch.first.step is not None:
        return
    first, second, third = watch.copies
    lags: dict[Seen, Lag] = {}
    for seen in watch.layers:
        both = [_lag(seen, first, second), _lag(seen, second, third)]
        slower = min((lag for lag in both if lag), key=lambda lag: lag.excess, default=None)
        initial = _left(seen)
        if slower and None not in both and slower.excess > 1 and not (initial and initial[0] > LEFT):
            lags[seen] = slower
    if lags:
        layers = sorted(lags, key=lambda seen: -lags[seen].excess)
        worst, momentum = lags[layers[0]], float(layers[0].module.momentum)
        yield Finding(
            cause="statistics-of-other-weights",
            severity="risk",
            layers=tuple(seen.path for seen in layers),
            symptom=f"At step {third.step}, the running statistics of {layers[0].path} trailed the latest batches: the "
            f"mean by {worst.mean:.2g} deviations, the variance by a factor of {math.exp(worst.log_variance):.3g}.",
            evidence={"step": third.step, "mean": worst.mean, "log_variance": worst.log_variance},
            why=f"They average about {1 / momentum:.0f} batches, and the weights moved much within so many.",
            remedy="Lower the learning rate before evaluation, use a larger momentum, or recalibrate.",
            code="xt.recalibrate(model.eval(), batches)",
        )
