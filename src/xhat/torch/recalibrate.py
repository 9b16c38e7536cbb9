"""Running statistics computed anew: the exact moments of each layer's input over many batches.

How the moments of one layer are recorded is in `recorder`; how moments are merged is in `sync.merge`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat import equations
from xhat.errors import ArgumentError
from xhat.torch.inputs import check_known
from xhat.torch.progress import with_progress
from xhat.torch.recorder import Recorder
from xhat.torch.sync import frames, groups
from xhat.torch.sync.frames import Array, FrameHeader
from xhat.torch.sync.layer import SyncBatchNorm
from xhat.torch.sync.merge import Moments, layer_by_layer, merged

__all__ = ["Recalibrated", "call", "in_lockstep", "recalibrate", "unwrapped", "write"]


class Recalibrated(NamedTuple):
    """How far a layer's running statistics were from those of the batches, as `recalibrate` found it.

    Print it for a line of text.

    Attributes
    ----------
    layer : str
        The layer's path in the model.
    m : float
        The number of values per channel.
    batches : int
        The number of calls of the layer; 0 if it was not called, and so not changed.
    shift : float
        The largest ``|running_mean - mean| / sqrt(var + eps)`` of a channel.
    ratio : float
        ``(running_var + eps) / (var + eps)`` of the channel where it is farthest from 1.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> batches = [torch.tensor([[1.0], [2.0], [6.0]])]
    >>> found = xt.recalibrate(xt.BatchNorm1d(1), batches, progress=False)
    >>> found[0].m, found[0].batches, round(found[0].ratio, 4)
    (3.0, 1, 0.2143)
    """

    layer: str
    m: float
    batches: int
    shift: float
    ratio: float

    def __str__(self) -> str:
        if not self.batches:
            return f"{self.layer}: not called"
        off = f"the mean was off by up to {self.shift:.3g} deviations, the variance by a factor of {self.ratio:.3g}"
        return f"{self.layer}: {off} ({self.m:g} values in {self.batches} batches)"


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    process_group: Any = None,
    progress: bool = True,
    dry_run: bool = False,
) -> list[Recalibrated]:
    """Compute the running statistics of a model anew, as the exact moments of all batches together.

    ::

        m            = sum of w
        running_mean = sum of w x / m
        running_var  = sum of w (x - running_mean)^2 / (m - correction)

    The sums are over all values x that reach the layer, in all calls and on all ranks of the process group. The
    correction is the layer's, and 0 for torch's layers. num_batches_tracked becomes the number of calls.

    Parameters
    ----------
    model : torch.nn.Module
        The model, with batch norms of torch's or xhat's. It is changed in place. Call ``model.eval()`` first to turn
        dropout off.
    batches : iterable
        What the model takes. Batches may have different sizes.
    forward : callable, optional
        How the model is called, ``forward(model, batch)``. The default calls it with the batch, with its first element
        if it is a list or tuple, or with its items as keyword arguments if it is a dict.
    process_group : torch.distributed.ProcessGroup, optional
        The ranks whose batches count together; by default all. A model with `SyncBatchNorm` needs the same number of
        batches on all ranks.
    progress : bool, default True
        Whether to show a progress bar (with rich, else lines) on stderr.
    dry_run : bool, default False
        Whether to report only, and change nothing.

    Returns
    -------
    list of Recalibrated
        How far the statistics of each layer were from those of the batches.

    Raises
    ------
    ArgumentError
        If there is nothing to do, if a lazy layer has had no input yet, and if a layer with ``nonfinite="raise"`` gets
        NaN or infinity (with "skip" such a batch is left out of the channel).
    ShapeError
        If the input of a layer with a forward of its own is not (N, C, ...).
    DegenerateBatchError
        If a batch has a single value per channel.
    ExchangeError
        On all ranks, if one of them fails.

    Notes
    -----
    During the calls, a batch norm normalizes each batch by the batch's own statistics; all other layers keep their
    mode. Layers with frozen statistics, layers with track_running_stats=False, and layers in evaluation mode in a
    model that is in training mode are not changed.

    If an exception is raised, also by ``batches`` or the model, no layer has changed.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(1)).eval()
    >>> batches = [torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0], [7.0]])]
    >>> found = xt.recalibrate(model, batches, progress=False)
    >>> model[0].running_mean, model[0].running_var
    (tensor([4.]), tensor([6.5000]))
    """
    model = unwrapped(model, "recalibrate")
    layers = {path: m for path, m in model.named_modules() if _has_moving_statistics(m, model)}
    if not layers:
        raise ArgumentError("recalibrate: the model has no batch norm whose running statistics may move.")
    check_known("recalibrate", layers)
    group = groups.group_name(process_group)
    recorders = [Recorder(path, layer) for path, layer in layers.items()]
    header = FrameHeader("population moments", f"{len(layers)} layers", sum(r.channels for r in recorders))
    on_ranks = groups.world_size(group) > 1
    lockstep = on_ranks and any(
        isinstance(m, SyncBatchNorm) and groups.world_size(m._group) > 1 for m in layers.values()
    )
    with ExitStack() as stack:
        stack.enter_context(
            frames.announce_failure(header, group, nested=True) if on_ranks else nullcontext()
        )
        stack.enter_context(torch.no_grad())
        for recorder in recorders:
            stack.enter_context(recorder.recording())
        shown = with_progress(batches, "recalibrate", progress and (not on_ranks or groups.rank(group) == 0))
        for batch in in_lockstep(shown, group) if lockstep else shown:
            (forward or call)(model, batch)
    found = _merged_over_ranks(recorders, header, group) if on_ranks else [r.moments for r in recorders]
    if not any(bool(m.any()) for m, _, _ in found):
        raise ArgumentError("recalibrate: there were no batches, or none that reached a layer.")
    report = [_report(recorder, moments) for recorder, moments in zip(recorders, found, strict=True)]
    if not dry_run:
        for recorder, moments in zip(recorders, found, strict=True):
            write(recorder.layer, moments, recorder.calls)
    return report


# ------------------------------------------------------------------------------------------- the model and its batches


def unwrapped(model: Any, operation: str) -> nn.Module:
    """The model without wrappers: data parallelism sends buffers, and a compiled graph can't be recorded."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{operation}: model is {type(model).__name__}, expected a torch.nn.Module.")
    while True:
        inner = vars(model).get("_modules", {}).get("_orig_mod")
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            found: nn.Module = model
            return found
        model = inner


def _has_moving_statistics(m: nn.Module, model: nn.Module) -> bool:
    """Whether this is a batch norm whose running statistics may change."""
    if not isinstance(m, _BatchNorm) or m.running_mean is None or m.running_var is None:
        return False
    moving = m.track_running_stats and not getattr(m, "frozen_statistics", False)
    return moving and (m.training or not model.training)


def call(model: nn.Module, batch: Any, operation: str = "recalibrate") -> Any:
    """The model called with a batch, as the default of `forward` does it."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (list, tuple)):
        batch = batch[0] if batch else None
    if not isinstance(batch, Tensor):
        raise ArgumentError(
            f"{operation}: a batch is {type(batch).__name__}, expected a tensor, or a list, tuple or dict that holds "
            "the input. Say how the model is called: forward=lambda model, batch: ..."
        )
    return model(batch)


def in_lockstep(batches: Iterable[Any], group: str, operation: str = "recalibrate") -> Iterator[Any]:
    """The batches, as long as all ranks have one: a SyncBatchNorm would wait for a rank that has none.

    Raises ArgumentError on all ranks if some have more batches than others.
    """
    iterator, none = iter(batches), object()
    while True:
        batch = next(iterator, none)
        mine = np.array([float(batch is not none)])
        have_one = frames.gather(mine, FrameHeader("population moments", "the next batch", 0), group).ravel()
        if not have_one.any():
            return
        if not have_one.all():
            raise ArgumentError(
                f"{operation}: the batches of ranks {np.flatnonzero(have_one == 0).tolist()} ended before the "
                "others', and the model has layers whose statistics are those of all ranks. Give each rank as many "
                "batches; they may be of different sizes."
            )
        yield batch


# ----------------------------------------------------------------------------------------------------- the moments


def _merged_over_ranks(recorders: list[Recorder], header: FrameHeader, group: str) -> list[Moments]:
    """Every layer's moments over all ranks, in one exchange. The recorders' calls become those of all ranks."""
    mine = np.concatenate([values for r in recorders for values in ([r.calls], *r.moments)])
    gathered = layer_by_layer(frames.gather(mine, header, group), [(1, *[r.channels] * 3) for r in recorders])
    found: list[Moments] = []
    for recorder, (calls, *moments) in zip(recorders, gathered, strict=True):
        recorder.calls = int(calls.sum())
        found.append(merged(*moments))
    return found


def _mean_and_variance(layer: Any, moments: Moments) -> tuple[Array, Array, Array]:
    """Which channels have had values, and the mean and variance of these channels."""
    m, mean, m2 = moments
    seen = m > 0
    return seen, mean[seen], equations.variance(m2[seen], m[seen], getattr(layer, "correction", 0))


def _report(recorder: Recorder, moments: Moments) -> Recalibrated:
    layer = recorder.layer
    seen, mean, var = _mean_and_variance(layer, moments)
    if not seen.any():
        return Recalibrated(recorder.path, 0.0, 0, 0.0, 1.0)
    eps = float(layer.eps)
    before = [t.detach().double().cpu().numpy()[seen] for t in (layer.running_mean, layer.running_var)]
    shift = np.abs(before[0] - mean) * equations.reciprocal_std(var, eps, np.sqrt)
    ratio = (before[1] + eps) / (var + eps)
    farthest = ratio[np.abs(np.log(ratio)).argmax()]  # a NaN counts as the farthest
    m = float(moments[0].max())
    return Recalibrated(recorder.path, m, recorder.calls, float(shift.max()), float(farthest))


def write(layer: Any, moments: Moments, calls: int) -> None:
    """Makes the moments the layer's running statistics, in the channels that have had values."""
    seen, mean, var = _mean_and_variance(layer, moments)
    if not seen.any():
        return
    for running, exact in ((layer.running_mean, mean), (layer.running_var, var)):
        running.data[torch.from_numpy(seen).to(running.device)] = torch.from_numpy(exact).to(running)
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.fill_(calls)
