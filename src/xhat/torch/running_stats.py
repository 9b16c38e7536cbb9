"""How running statistics move by torch's operations: momentum, conventions, NaN and infinity; and xhat::track, the
operator that does so in a graph.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat import equations
from xhat.checks import check_correction, number, shown
from xhat.errors import ArgumentError, DegenerateBatchError
from xhat.torch.errors import TensorArgumentError, TensorDtypeError, TensorShapeError, TensorTypeError
from xhat.torch.inputs import CODES, Batch, Moving, check_device, check_nonfinite, check_statistics
from xhat.torch.internals import on_a_device, recomputing, transforming
from xhat.torch.memory import check_memory

__all__ = ["Following", "Running", "kernels", "momentum_of", "move", "track"]


class Kernels:
    """`in_place` of `functional`, which imports this file and sets it: the kernels that can move running statistics."""

    in_place: Callable[["Following", Tensor, Any], tuple[Any, Moving] | None]


kernels = Kernels()


class Running(NamedTuple):
    """Running mean and variance (C,), the batches they have seen, and per channel those they have left out."""

    mean: Tensor
    var: Tensor
    batches: Tensor | None
    skipped: Tensor | None


class Following(NamedTuple):
    """Running statistics that are to follow a batch, and how: `functional.follow` has the equations."""

    running: Running
    momentum: Any
    correction: int
    running_correction: int
    nonfinite: str


def move(following: Following, batch: Batch) -> None:
    """`functional.follow` by torch's operations, for a batch that counts; every check that it needs."""
    running, momentum, correction, running_correction, nonfinite = following
    check_correction(running_correction, "batch_norm", "running_correction")
    visible = not transforming()  # inside torch.func, values can't be read
    _check(running, batch, visible)
    momentum = momentum_of(momentum)
    if batch.statistics.is_meta and running.mean.is_meta:  # tensors without data
        return
    # Weights that sum to 1 do so up to rounding errors, by which nothing should be divided.
    if visible and not on_a_device(batch.count) and not batch.count - running_correction > 1e-6 * batch.count:
        raise DegenerateBatchError(
            f"batch_norm: the batch has m = {float(batch.count):g}, expected more than running_correction="
            f"{running_correction} for the running variance. Pass running_correction=0, or more (or larger) weights."
        )
    factor = (batch.count - correction) / (batch.count - running_correction)
    if visible:
        _check_places(running)
    with torch.no_grad():
        finite = _finite(running, batch, factor, nonfinite, visible)
        _move(running, batch, momentum, factor, finite)


def _check(running: Running, batch: Batch, visible: bool) -> None:
    channels = batch.statistics.shape[1:]
    if running.mean.shape != channels or running.var.shape != channels:
        raise TensorShapeError(
            f"batch_norm: running_mean and running_var have shapes {shown(running.mean.shape)} and "
            f"{shown(running.var.shape)}, expected {shown(channels)} to match dimension 1 of input. Channels are "
            "dimension 1: pass input.movedim(-1, 1) where they are last."
        )
    if running.mean.dtype not in CODES or running.var.dtype not in CODES:
        raise TensorDtypeError(
            f"batch_norm: running_mean and running_var have dtypes {running.mean.dtype} and {running.var.dtype}, "
            "expected real floating-point ones."
        )
    _check_devices(running, batch.statistics.device)
    learned = running.mean.requires_grad or running.var.requires_grad
    if learned and visible and torch.is_grad_enabled():
        raise TensorArgumentError(
            "batch_norm: running_mean or running_var requires a gradient, and training would change it in place. "
            "Detach it, or use it in evaluation, where it has a gradient."
        )


def _check_devices(running: Running, device: torch.device) -> None:
    for name, tensor in zip(("running_mean", "running_var", "batches", "skipped"), running, strict=True):
        if tensor is not None:
            check_device(name, tensor, device)


def _check_places(running: Running) -> None:
    """Raises if one of the statistics cannot be written, before any of them is."""
    check_memory(*running)
    if any(t is not None and t._is_zerotensor() for t in running):
        raise TensorArgumentError(
            "batch_norm: a running statistic is a tensor that is known to be zero, and has no memory to be written. "
            "Give the layer torch.zeros of its shape."
        )
    if not torch.is_inference_mode_enabled() and any(t is not None and t.is_inference() for t in running):
        raise TensorArgumentError(
            "batch_norm: the running statistics were made in inference mode, and can't move outside of it. "
            "Give the layer clones of them."
        )
    if len(running.mean) > 1 and 0 in running.mean.stride() + running.var.stride():
        raise TensorArgumentError(
            "batch_norm: running_mean or running_var is expanded, expected a number in memory for each channel. "
            "Pass a contiguous copy."
        )


def momentum_of(momentum: Any) -> float | None:
    """momentum as a float, or None. Raises TensorTypeError."""
    if momentum is None:
        return None
    if not math.isfinite(value := number(momentum)):
        raise TensorTypeError(
            f"batch_norm: momentum is {momentum!r}, expected a finite number, or None for the average of all batches."
        )
    return value


def _cumulative(batches: Tensor | None) -> Tensor:
    """The number of batches, for momentum=None."""
    if batches is None:
        raise TensorTypeError(
            "batch_norm: momentum is None, expected a number: only a layer counts its batches."
        )
    if batches.numel() != 1:
        raise TensorShapeError(
            f"batch_norm: num_batches_tracked has shape {shown(batches.shape)}, expected () for momentum=None, which "
            "averages over that number of batches."
        )
    return batches


def _finite(running: Running, batch: Batch, factor: Any, nonfinite: str, visible: bool) -> Tensor | None:
    """The channels that may move, None for all. Raises ArgumentError for nonfinite="raise" and one that may not."""
    if check_nonfinite(nonfinite) == "propagate":
        return None
    mean, var = batch.statistics.unbind(0)
    # In the dtype of the running statistics: elements near 1e30 have a variance that overflows float32.
    finite = torch.isfinite(mean.to(running.mean.dtype)) & torch.isfinite(
        (factor * var).to(running.var.dtype)
    )
    if nonfinite == "skip":
        return finite
    if not visible:
        raise ArgumentError(
            'batch_norm: nonfinite="raise" has to look at values, which torch.func does not show. '
            'Use "propagate" or "skip" there.'
        )
    bad = torch.nonzero(~finite).flatten().tolist()
    if bad:
        listed = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ArgumentError(
            "batch_norm: the batch has NaN or infinity, or a variance that overflows, in "
            f'channel{"s" * (len(bad) > 1)} {listed} of {len(finite)}, and nonfinite="raise". The running statistics '
            "are unchanged."
        )
    return None


def _move(running: Running, batch: Batch, momentum: float | None, factor: Any, finite: Tensor | None) -> None:
    mean, var, batches, skipped = running
    counts = (batch.count > 0) if on_a_device(batch.count) else 1  # an empty batch moves nothing
    seen = None if batches is None else batches + counts
    left_out = skipped if skipped is None or finite is None else skipped + ~finite
    weight: Any = momentum
    if momentum is None:
        counted = _cumulative(seen) if left_out is None else _cumulative(seen) - left_out
        weight = 1 / counted.to(batch.statistics.dtype).clamp(min=1)  # some devices have no float64
    if isinstance(counts, Tensor):
        finite = counts if finite is None else finite & counts
    moved: list[tuple[Tensor | None, Any]] = []
    for statistic, found in ((mean, batch.statistics[0]), (var, factor * batch.statistics[1])):
        old = statistic.to(found.dtype)
        new = equations.track(old, found, weight)
        moved.append((statistic, new if finite is None else torch.where(finite, new, old)))
    _put([*moved, (batches, seen), (skipped, left_out)])


def _put(values: list[tuple[Tensor | None, Any]]) -> None:
    """Writes new values, all of which were computed before the first one is written."""
    try:
        for old, new in values:
            if old is not None:
                old.copy_(new)
    except RuntimeError as error:
        if not transforming():
            raise
        raise TensorArgumentError(
            "batch_norm: inside torch.func, running statistics move only if they are arguments of the transformed "
            "function, and under vmap one of each for every element. Pass them by torch.func.functional_call (and "
            "torch.func.stack_module_state), or use layer.eval() or track_running_stats=False."
        ) from error


# ------------------------------------------------------------------------------------------------------- in a graph

_library = torch.library.Library("xhat", "FRAGMENT")
_library.define(
    "track(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? batches, Tensor(d!)? skipped, "
    "Tensor statistics, Tensor count, float? momentum, int correction, int running_correction, str nonfinite) -> ()"
)


def track(following: Following, batch: Batch) -> None:
    """`move` as an operator, for a graph that is being recorded."""
    running, momentum, correction, running_correction, nonfinite = following
    check_correction(running_correction, "batch_norm", "running_correction")
    statistics, m = batch.statistics, batch.count
    _check_devices(running, statistics.device)
    if not isinstance(m, Tensor):
        m = torch.full((), m, dtype=statistics.dtype, device=statistics.device)
    torch.ops.xhat.track(*running, statistics, m, momentum, correction, running_correction, nonfinite)


def _track(
    running_mean: Tensor, running_var: Tensor, batches: Tensor | None, skipped: Tensor | None, statistics: Tensor,
    count: Tensor, momentum: float | None, correction: int, running_correction: int, nonfinite: str,
) -> None:  # fmt: skip
    check_statistics(statistics, len(running_mean))
    # An empty batch moves nothing; on a device, `move` has it so without the host.
    if not recomputing() and (transforming() or on_a_device(count) or count != 0):
        running = Running(running_mean, running_var, batches, skipped)
        following = Following(running, momentum, correction, running_correction, nonfinite)
        found = kernels.in_place(following, statistics, count) if on_a_device(count) else None
        if found is not None:
            found[0].track(found[1], statistics)
        else:
            move(following, Batch(statistics, count))


for _key in ("CompositeExplicitAutograd", "FuncTorchDynamicLayerFrontMode"):
    _library.impl("track", _track, _key)
torch.library.register_fake("xhat::track", lambda *_: None, lib=_library)
