"""Running statistics made anew: each layer's moments over many batches, merged. Nothing is estimated, nothing decays.

While the batches run, a layer normalizes each by its own statistics, as in training, and these are what is merged;
how a layer is watched and put back as it was is here, how moments merge is in `merging`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat import equations
from xhat.checks import shown
from xhat.errors import ArgumentError, ShapeError
from xhat.torch import composed, parts
from xhat.torch.cpu import CODES
from xhat.torch.functional import normalized
from xhat.torch.internals import plain
from xhat.torch.layers import BatchNorm
from xhat.torch.options import Batch, options_of
from xhat.torch.progress import watched
from xhat.torch.statistics import Running
from xhat.torch.sync import frames
from xhat.torch.sync.frames import Array, FrameHeader
from xhat.torch.sync.layer import SyncBatchNorm
from xhat.torch.sync.merge import Moments, layer_by_layer, merge, merged
from xhat.torch.tensors import check_known

__all__ = ["Recalibrated", "recalibrate"]


class Recalibrated(NamedTuple):
    """How far a layer's running statistics were from the population's.

    m, batches: the values per channel that were seen, and in how many calls of the layer (0: it was not called, and was
    left as it was). shift: the largest |running_mean - mean| / sqrt(var + eps) of a channel. ratio: of the channels'
    (running_var + eps) / (var + eps), the one farthest from 1.
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
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] | None = None,
    process_group: Any = None, progress: bool = True, dry_run: bool = False,
) -> list[Recalibrated]:  # fmt: skip
    """Gives every batch norm of the model, torch's or ours, the exact moments of these batches together.

        m = sum of w     running_mean = sum of w x / m     running_var = sum of w (x - mean)^2 / (m - correction)

    over all values x that reach the layer, in all calls and on all ranks of the process group; num_batches_tracked
    becomes the number of calls. Batches may be of any sizes. While they run, layers normalize each batch by its own
    statistics; everything else runs in the mode it is in, so call model.eval() first, or dropout stays active. A layer
    with frozen statistics, one with track_running_stats=False, and one that is in evaluation while the model is in
    training stay as they are.

    forward: how the model is called, forward(model, batch); by default with the batch, with its first element if it is
    a list or tuple, or with its items as keywords if it is a dict. progress: show a bar (with rich, else lines).
    dry_run: only report. A model with `SyncBatchNorm` needs the same number of batches on all ranks.

    Returns what was wrong with each layer, `Recalibrated`. Whatever is raised, also by batches or the model, leaves
    every layer as it was. Raises ArgumentError where there is nothing to do, a lazy layer has met no input yet, or a
    layer met NaN or infinity and has nonfinite="raise" ("skip" leaves such batches out of the channel); ShapeError
    where the input of a layer with a forward of its own is no (N, C, ...); ExchangeError on all ranks if one fails.
    """
    model = _unwrapped(model)
    layers = {path: m for path, m in model.named_modules() if _follows(m, model)}
    if not layers:
        raise ArgumentError("recalibrate: the model has no batch norm whose running statistics may move.")
    check_known("recalibrate", layers)
    group = frames.group_name(process_group)
    watches = [Watch(path, layer) for path, layer in layers.items()]
    subject = FrameHeader("population moments", f"{len(layers)} layers", sum(w.channels for w in watches))
    shared = any(isinstance(m, SyncBatchNorm) and frames.world_size(m._group) > 1 for m in layers.values())
    many = frames.world_size(group) > 1
    with (
        frames.announce_failure(subject, group) if many else nullcontext(),
        torch.no_grad(),
        ExitStack() as stack,
    ):
        for watch in watches:
            stack.enter_context(watch.watching())
        shown = watched(batches, progress and (not many or frames.rank(group) == 0))
        for batch in _in_step(shown, group) if shared and many else shown:
            (forward or _call)(model, batch)
    found = _together(watches, subject, group) if many else [w.moments for w in watches]
    if not any(bool(m.any()) for m, _, _ in found):
        raise ArgumentError("recalibrate: there were no batches, or none that reached a layer.")
    report = [watch.report(moments) for watch, moments in zip(watches, found, strict=True)]
    if not dry_run:
        for watch, moments in zip(watches, found, strict=True):
            watch.write(moments)
    return report


# --------------------------------------------------------------------------------------------------- the model


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model itself: what wraps it would exchange buffers, or run a graph that nobody can watch."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"recalibrate: model is {type(model).__name__}, expected a torch.nn.Module.")
    while True:
        inner = vars(model).get("_modules", {}).get("_orig_mod")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def _follows(m: nn.Module, model: nn.Module) -> bool:
    """Whether this is a layer whose running statistics may move."""
    if not isinstance(m, _BatchNorm) or m.running_mean is None or m.running_var is None:
        return False
    moves = m.track_running_stats and not getattr(m, "frozen_statistics", False)
    return moves and (m.training or not model.training)


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, dict):
        return model(**batch)
    if isinstance(batch, (list, tuple)):
        batch = batch[0] if batch else None
    if not isinstance(batch, Tensor):
        raise ArgumentError(
            f"recalibrate: a batch is {type(batch).__name__}, expected a tensor, or a list, tuple or dict that holds "
            "the input. Say how the model is called: forward=lambda model, batch: ..."
        )
    return model(batch)


def _in_step(batches: Iterable[Any], group: str) -> Iterator[Any]:
    """The batches, while all ranks have one: a layer that exchanges its statistics would wait for ever."""
    iterator, none = iter(batches), object()
    while True:
        batch = next(iterator, none)
        more = np.array([float(batch is not none)])
        have = frames.gather(more, FrameHeader("population moments", "the next batch", 0), group).ravel()
        if not have.any():
            return
        if not have.all():
            raise ArgumentError(
                f"recalibrate: the batches of ranks {np.flatnonzero(have == 0).tolist()} ended before the "
                "others', and the model has layers whose statistics are those of all ranks. Give each rank as many "
                "batches; they may be of different sizes."
            )
        yield batch


# ------------------------------------------------------------------------------------------------- one layer


class Watch:
    """A layer whose batches are merged as they come."""

    def __init__(self, path: str, layer: Any) -> None:
        self.path, self.layer = path, layer
        self.channels = len(layer.running_mean)
        self.moments: Moments = (np.zeros(self.channels), np.zeros(self.channels), np.zeros(self.channels))
        self.calls = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The layer in training, which leaves its batches here and moves nothing; afterwards it is as it was."""
        layer, kept = self.layer, dict(vars(self.layer))
        buffers = {name: b.clone() for name, b in layer._buffers.items() if b is not None}
        hook = None
        try:
            if isinstance(layer, BatchNorm):
                vars(layer)["_follow"] = self.follow
            elif type(layer).forward in _TORCHS and "forward" not in vars(layer):
                vars(layer)["forward"] = self.forward
            else:  # of somebody's own making: its input is all that is known of it
                hook = layer.register_forward_pre_hook(self.look, with_kwargs=True)
            layer.training = True
            yield
        finally:
            for name in ("_follow", "forward"):
                vars(layer).pop(name, None)
                vars(layer).update({name: kept[name]} if name in kept else {})
            layer.training = kept["training"]
            if hook is not None:
                hook.remove()
                for name, value in buffers.items():
                    layer._buffers[name].copy_(value)

    def follow(self, running: Running, batch: Batch) -> None:
        """In place of moving the running statistics."""
        m, c = float(batch.count), self.layer.correction
        shares = frames.world_size(self.layer._group) if isinstance(self.layer, SyncBatchNorm) else 1
        mean, var = batch.statistics.unbind(0)
        self.add(m / shares, mean, var * ((m - c) / shares))  # all who share a batch bring it: each its share

    def forward(self, input: Tensor) -> Tensor:
        """In place of the forward of torch's layer."""
        layer = self.layer
        layer._check_input_dim(input)
        y, batch = normalized(
            input, layer.weight, layer.bias, None, None, None, None, options_of(layer.eps, 0, None)
        )
        if batch is not None:
            self.add(float(batch.count), batch.statistics[0], batch.statistics[1] * float(batch.count))
        return y

    def look(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the forward of a layer of another class, whose first argument is its input."""
        given = inspect.signature(layer.forward).bind(*args, **kwargs)
        x = next(iter((*given.args, *given.kwargs.values())), None)
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != self.channels:
            got = f"shape {shown(x.shape)}" if isinstance(x, Tensor) else f"class {type(x).__name__}"
            raise ShapeError(
                f"recalibrate: the input of layer {self.path!r} has {got}, expected (N, {self.channels}, ...). "
                "Set its track_running_stats to False to leave it out."
            )
        m, _, moments = (parts if plain(x) and x.dtype in CODES else composed).moments(x, None)
        if m:
            self.add(m, moments[0], moments[1])

    def add(self, m: float, mean: Tensor, m2: Tensor) -> None:
        """Merges one batch. Raises ArgumentError for NaN and infinity, if the layer does not take them."""
        count, found = np.full(self.channels, m), (mean.cpu().numpy(), m2.cpu().numpy())
        policy = getattr(self.layer, "nonfinite", "propagate")
        if policy != "propagate":
            finite = np.isfinite(found).all(0)
            if policy == "raise" and not finite.all():
                raise ArgumentError(
                    f"recalibrate: layer {self.path!r} met NaN or infinity in channels "
                    f'{np.flatnonzero(~finite).tolist()[:8]}, and has nonfinite="raise".'
                )
            count *= finite
        self.moments = merge(self.moments, (count, *found))
        self.calls += 1

    def _statistics(self, moments: Moments) -> tuple[Array, Array, Array]:
        """Which channels have seen something, and their mean and variance."""
        m, mean, m2 = moments
        seen = m > 0
        return seen, mean[seen], equations.variance(m2[seen], m[seen], getattr(self.layer, "correction", 0))

    def report(self, moments: Moments) -> Recalibrated:
        """How far the running statistics are from these moments."""
        layer = self.layer
        seen, mean, var = self._statistics(moments)
        if not seen.any():
            return Recalibrated(self.path, 0.0, 0, 0.0, 1.0)
        before = [t.detach().double().cpu().numpy()[seen] for t in (layer.running_mean, layer.running_var)]
        shift = np.abs(before[0] - mean) * equations.reciprocal_std(var, layer.eps, np.sqrt)
        ratio = (before[1] + layer.eps) / (var + layer.eps)
        farthest = ratio[np.abs(np.log(ratio)).argmax()]  # a NaN is the farthest
        return Recalibrated(
            self.path, float(moments[0].max()), self.calls, float(shift.max()), float(farthest)
        )

    def write(self, moments: Moments) -> None:
        """Makes them the running statistics, in the channels that have seen something."""
        layer = self.layer
        seen, mean, var = self._statistics(moments)
        if not seen.any():
            return
        for running, new in ((layer.running_mean, mean), (layer.running_var, var)):
            running.data[torch.from_numpy(seen).to(running.device)] = torch.from_numpy(new).to(running)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(self.calls)


# Whose meaning is torch's: `Watch.forward` has the same.
_TORCHS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _together(watches: list[Watch], subject: FrameHeader, group: str) -> list[Moments]:
    """Every layer's moments on all ranks, in one exchange."""
    mine = np.concatenate([n for w in watches for n in ([w.calls], *w.moments)])
    ranks = frames.gather(mine, subject, group)
    found: list[Moments] = []
    everybodys = layer_by_layer(ranks, [(1, *[w.channels] * 3) for w in watches])
    for watch, (calls, *moments) in zip(watches, everybodys, strict=True):
        watch.calls = int(calls.sum())
        found.append(merged(*moments))
    return found
