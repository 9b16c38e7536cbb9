"""When one mode is worse than another by enough to be called harm; and how a finding names its layers."""

import numpy as np

from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import Proof
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.signals import Gap, deviation

__all__ = ["is_relevant", "listed", "tried"]


def is_relevant(measured: Measured, gap: Gap, before: str, after: str | None = None) -> bool:
    """Whether the gain is real (beyond the scatter between batches) and large, and the outputs of the modes differ."""
    if not gap.defined or not gap.gain > 0:
        return False
    if gap.gain == float("inf"):
        return True
    if not (gap.gain > _scatter(measured, before, after) * gap.error or gap.better > at.MOSTLY):
        return False
    if measured.quantity == "distance":
        known = measured.distances["pooled"][~np.isnan(measured.distances["pooled"])]
        moved = float(known.mean()) if len(known) else float("nan")
        return gap.gain > at.DISTANCE_GAIN and not moved < at.HALVES * measured.halves
    if not gap.gain > at.RELATIVE_GAIN * abs(gap.after):
        return False
    if after is None:  # a remedy that was tried: its outputs were not kept
        return gap.gain > at.SPREAD * gap.spread
    return not _outputs_agree(measured, before, after)


def _scatter(measured: Measured, before: str, after: str | None) -> float:
    """How many standard errors a gain must have: fewer where the statistics are far off, which is evidence too."""
    if (before, after) != ("evaluation", "pooled"):
        return at.SCATTER
    tracking = [x for x in measured.layers if x.tracks and not x.fixed and measured.tap(x).batches]
    off = max((max(deviation(x, measured.tap(x))) for x in tracking), default=0.0)
    return at.SCATTER_FAR if off > at.FAR else at.SCATTER


def _outputs_agree(measured: Measured, before: str, after: str) -> bool:
    """Whether the outputs of the two modes are nearly the same. Where they can't be compared, they differ."""
    anchor = "evaluation" if "evaluation" in (before, after) else "batch"
    other = after if before == anchor else before
    found = (measured.distances if anchor == "evaluation" else measured.to_batch)[other]
    return not np.isnan(found).all() and float(np.nanmean(found)) < at.OUTPUT_DISTANCE


def listed(worst: Layer, layers: list[Layer]) -> str:
    """The worst layer by its path, and how many others there are."""
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"{repr(worst.path) if worst.path else 'the model'}{more}"


def tried(measured: Measured, name: str) -> Proof | None:
    """What this remedy gained on a copy; None if it was not tried, or has not gained enough."""
    if name not in measured.trials:
        return None
    gap = measured.trial(name)
    return (
        Proof(measured.quantity, gap.before, gap.after) if is_relevant(measured, gap, "evaluation") else None
    )
