"""Records the moments of all batches that reach one layer, while the model runs, and leaves the layer as it was.

Which layers are recorded, and what becomes of the moments, must never be decided here.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.checks import shown
from xhat.errors import ArgumentError, ShapeError
from xhat.torch import composed
from xhat.torch.engines import engine_for
from xhat.torch.functional import normalized
from xhat.torch.inputs import CODES, Batch, Inputs
from xhat.torch.internals import on_a_device
from xhat.torch.nn import BatchNorm
from xhat.torch.running_stats import Running
from xhat.torch.sync.groups import world_size
from xhat.torch.sync.layer import SyncBatchNorm
from xhat.torch.sync.merge import Moments, merge

__all__ = ["Recorder", "moments_of"]

_TORCH_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def moments_of(x: Tensor, mask: Tensor | None = None) -> tuple[float, int, Tensor]:
    """m, the number of values that have a weight, and mean and m2 (2, C), in float64 wherever the device has it."""
    engine = engine_for(x, mask) if x.dtype in CODES else None
    found: tuple[float, int, Tensor] = (engine or composed).moments(x, mask)
    return found


class Recorder:
    """The merged moments of the batches of one layer, and the number of its calls."""

    def __init__(self, path: str, layer: Any) -> None:
        self.path, self.layer = path, layer
        self.channels = len(layer.running_mean)
        self._moments: Any = (np.zeros(self.channels),) * 3  # or tensors, of a layer on a device
        self.calls = 0

    @property
    def moments(self) -> Moments:
        """m, mean and m2 of all batches so far; the host waits for a device here, and in no batch."""
        return tuple(t.cpu().numpy() if isinstance(t, Tensor) else t for t in self._moments)  # type: ignore[return-value]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The layer in training mode, with its moments recorded and its running statistics left as they are."""
        layer, before = self.layer, dict(vars(self.layer))
        buffers = {name: b.clone() for name, b in layer._buffers.items() if b is not None}
        hook = None
        try:
            if isinstance(layer, BatchNorm):
                vars(layer)["_follow"] = self.follow
            elif type(layer).forward in _TORCH_FORWARDS and "forward" not in vars(layer):
                vars(layer)["forward"] = self.forward
            else:  # a subclass with a forward of its own: only its input is known
                hook = layer.register_forward_pre_hook(self.pre_hook, with_kwargs=True)
            layer.training = True
            yield
        finally:
            for name in ("_follow", "forward"):
                vars(layer).pop(name, None)
                vars(layer).update({name: before[name]} if name in before else {})
            layer.training = before["training"]
            if hook is not None:
                hook.remove()
                for name, value in buffers.items():
                    layer._buffers[name].copy_(value)

    def follow(self, running: Running, batch: Batch) -> None:
        """Replaces the update of xhat's layer."""
        m, c = batch.count if on_a_device(batch.count) else float(batch.count), self.layer.correction
        ranks = world_size(self.layer._group) if isinstance(self.layer, SyncBatchNorm) else 1
        mean, var = batch.statistics.unbind(0)
        self.add(
            m / ranks, mean, var * ((m - c) / ranks)
        )  # each rank that shares the batch adds a part of it

    def forward(self, input: Tensor) -> Tensor:
        """Replaces the forward of torch's layer, and computes the same."""
        layer = self.layer
        layer._check_input_dim(input)
        y, batch = normalized(
            Inputs(input, layer.weight, layer.bias, None, None, None, None), layer.eps, 0, None
        )
        if batch is not None:
            self.add(float(batch.count), batch.statistics[0], batch.statistics[1] * float(batch.count))
        return y

    def pre_hook(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Runs before the forward of a layer of another class; the first argument is the layer's input."""
        given = inspect.signature(layer.forward).bind(*args, **kwargs)
        x = next(iter((*given.args, *given.kwargs.values())), None)
        if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[1] != self.channels:
            got = f"shape {shown(x.shape)}" if isinstance(x, Tensor) else f"class {type(x).__name__}"
            raise ShapeError(
                f"recalibrate: the input of layer {self.path!r} has {got}, expected (N, {self.channels}, ...). "
                "Set its track_running_stats to False to leave it out."
            )
        m, _, moments = moments_of(x)
        if m:
            self.add(m, moments[0], moments[1])

    def add(self, m: Any, mean: Tensor, m2: Tensor) -> None:
        """Merges one batch. Raises ArgumentError for NaN and infinity if the layer has nonfinite="raise"."""
        count, found = torch.ones_like(mean) * m, (mean, m2)
        policy = getattr(self.layer, "nonfinite", "propagate")
        if policy != "propagate":
            finite = torch.isfinite(mean) & torch.isfinite(m2)
            if policy == "raise" and not finite.all():
                raise ArgumentError(
                    f"recalibrate: layer {self.path!r} met NaN or infinity in channels "
                    f'{torch.nonzero(~finite).flatten().tolist()[:8]}, and has nonfinite="raise".'
                )
            count = count * finite
        new: Any = (count, *found)
        if on_a_device(mean) and mean.dtype is torch.float64:
            before: Any = tuple(torch.as_tensor(t, device=mean.device) for t in self._moments)
            self._moments = merge(before, new)
        else:
            self._moments = merge(self.moments, tuple(t.cpu().double().numpy() for t in new))
        self.calls += 1
