"""How running statistics follow a batch: momentum, conventions, NaN and infinity, and recomputed forward passes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat import equations
from xhat.errors import ArgumentError, DegenerateBatchError
from xhat.ops import run_track
from xhat.torch.cpu import CODES
from xhat.torch.internals import plain, recomputing, tracing, transforming
from xhat.torch.options import Batch

__all__ = ["Running", "follow"]


class Running(NamedTuple):
    """Running mean and variance (C,), the batches they have seen, and per channel those they have left out."""

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    skipped: Tensor | None


def follow(
    running: Running,
    batch: Batch,
    momentum: float | None,
    correction: int,
    running_correction: int,
    nonfinite: str,
) -> None:
    """Moves the running statistics towards the batch's, unless this forward repeats one (activation checkpointing).

        batches += 1      k = momentum, or 1 / batches when it is None (the plain average over batches)
        running_mean += k (mean - running_mean)
        running_var  += k (m2 / (m - running_correction) - running_var)

    nonfinite "skip" leaves a channel with NaN or infinity as it is and counts it in `skipped`; "raise" raises
    ArgumentError and changes nothing. Raises DegenerateBatchError where m <= running_correction.
    """
    if recomputing():
        return
    if tracing() and not transforming():
        torch.ops.xhat.track(*running, batch.mean, batch.var, _scalar(batch), momentum, correction, running_correction,
                             nonfinite)  # fmt: skip
        return
    with torch.no_grad():
        move(running, batch, momentum, correction, running_correction, nonfinite)


def _scalar(batch: Batch) -> Tensor:
    """m as a tensor, which a graph can hold."""
    if isinstance(batch.count, Tensor):
        return batch.count
    return torch.full((), batch.count, dtype=torch.float64, device=batch.mean.device)


def move(
    running: Running,
    batch: Batch,
    momentum: float | None,
    correction: int,
    running_correction: int,
    nonfinite: str,
) -> None:
    """`follow` for a batch that counts."""
    seeing = not transforming()  # whether values can be looked at
    if seeing:
        m = float(batch.count)
        if m <= running_correction:
            raise DegenerateBatchError(
                f"batch_norm: the batch has m = {m:g}, expected more than running_correction={running_correction} for "
                "the running variance. Pass running_correction=0, or more (or larger) weights."
            )
    finite = None
    if nonfinite != "propagate":
        finite = torch.isfinite(batch.mean) & torch.isfinite(batch.var)
        if nonfinite == "raise":
            _refuse(finite, seeing)
    if running.batches is not None:
        running.batches.add_(1)
    factor = (batch.count - correction) / (batch.count - running_correction)
    if finite is None and seeing and momentum is not None and plain(*running[:2], *batch[:2]):
        _move_by_kernel(running, batch, momentum, float(factor))
        return
    _move_composed(running, batch, _weight(running, momentum, finite), factor, finite)


def _refuse(finite: Tensor, seeing: bool) -> None:
    """Raises ArgumentError that names the channels with NaN or infinity."""
    if not seeing:
        raise ArgumentError(
            'batch_norm: nonfinite="raise" has to look at values, which torch.func does not show. '
            'Use "propagate" or "skip" there.'
        )
    bad = torch.nonzero(~finite).flatten().tolist()
    if bad:
        listed = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ArgumentError(
            f"batch_norm: the batch has NaN or infinity in channel{'s' * (len(bad) > 1)} {listed} of {len(finite)}, "
            'and nonfinite="raise". The running statistics are unchanged.'
        )


def _weight(running: Running, momentum: float | None, finite: Tensor | None) -> Any:
    """k: the momentum, or 1 / batches, of those that this channel did not leave out."""
    if running.skipped is not None and finite is not None:
        running.skipped.add_(~finite)
    if momentum is not None:
        return momentum
    if running.batches is None:
        raise ArgumentError(
            "batch_norm: momentum is None, expected a number: only a layer counts its batches."
        )
    seen = running.batches if running.skipped is None else running.batches - running.skipped
    return 1 / seen.double().clamp(min=1)


def _move_by_kernel(running: Running, batch: Batch, weight: float, factor: float) -> None:
    for moved, found, scale in ((running.mean, batch.mean, 1.0), (running.var, batch.var, factor)):
        if moved.is_contiguous():
            place = (moved.data_ptr(), CODES[moved.dtype])
            run_track(len(moved), place, found.data_ptr(), weight, scale)
            torch.autograd.graph.increment_version(moved)  # whoever saved it is to hear of this
        else:
            moved.copy_(equations.track(moved.double(), scale * found, weight))


def _move_composed(running: Running, batch: Batch, weight: Any, factor: Any, finite: Tensor | None) -> None:
    for moved, found in ((running.mean, batch.mean), (running.var, factor * batch.var)):
        new = equations.track(moved.to(found.dtype), found, weight)
        moved.copy_(new if finite is None else torch.where(finite, new, moved.to(found.dtype)))
