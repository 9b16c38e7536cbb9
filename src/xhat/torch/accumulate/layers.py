"""The batch norms of a model while it is walked: their batch is that of all walkers. No formula lives here."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.errors import ArgumentError
from xhat.torch.accumulate.in_step import ALONE, walking
from xhat.torch.convert.layers import class_name, convert_layer, reason_to_leave, revert_layer
from xhat.torch.ghost import GhostBatchNorm
from xhat.torch.inputs import Batch, Inputs, check_known
from xhat.torch.nn import BatchNorm
from xhat.torch.operators import Where
from xhat.torch.running_stats import Following, Running
from xhat.torch.sync import frames, shared_batch
from xhat.torch.sync.frames import FrameHeader
from xhat.torch.sync.layer import SyncBatchNorm

__all__ = ["batch_norms", "check_layers_alone", "failures_announced", "walked"]


class InStep(BatchNorm):
    """The batch norm whose batch is that of all walkers. It comes between a layer's class and `BatchNorm`."""

    _walked_path: str

    def _normalized(
        self, t: Inputs, eps: Any, correction: Any, activation: Any, following: Following | None = None
    ) -> Any:
        if t.mean is not None or walking() is None:
            return super()._normalized(t, eps, correction, activation, following)
        where = Where(ALONE, self._walked_path)
        return shared_batch.normalized(t, eps, correction, activation, where)


@cache
def _walked_class(kind: Any) -> Any:
    """A subclass of this class of layers, whose super() is `InStep` where it was `BatchNorm`."""

    def _normalized(self: Any, t: Inputs, *options: Any) -> Any:
        if isinstance(self, GhostBatchNorm) and t.mean is None and len(t.x) % self.groups:
            raise ArgumentError(
                f"accumulate: a micro-batch has {len(t.x)} samples, expected a multiple of groups={self.groups}: else "
                "its groups are no part of the whole batch's."
            )
        return super(found, self)._normalized(t, *options)

    def _follow(self: Any, running: Running, batch: Batch) -> None:
        """Moves the running statistics once, and not once for each walker."""
        walker = walking()
        if walker is None or walker.last:
            super(found, self)._follow(running, batch)

    members = {"__module__": kind.__module__, "_follow": _follow, "_normalized": _normalized}
    found: Any = type(kind.__name__, (kind, InStep), members)
    return found


def batch_norms(model: nn.Module) -> dict[str, Any]:
    """The batch norms that take their statistics from the batch. Raises ArgumentError where one can't be walked."""
    found: dict[str, Any] = {
        path: m for path, m in model.named_modules() if isinstance(m, _BatchNorm) and _by_the_batch(m)
    }
    check_known("accumulate", {path: m for path, m in found.items() if m.running_mean is not None})
    for path, m in found.items():
        if isinstance(m, BatchNorm):
            reason = "it is adapted by xt.adapt" if "_normalized" in vars(m) else None
        else:
            reason = reason_to_leave(m)
        if reason is not None:
            raise ArgumentError(
                f"accumulate: layer {path!r} ({class_name(m)}) can't share its batch with other micro-batches: "
                f"{reason}. Put it in evaluation mode, or one of xhat.torch's layers in its place."
            )
    return found


def check_layers_alone(value: Tensor) -> None:
    """Raises ArgumentError if a batch norm by the batch's statistics that is no such layer has led to this value."""
    seen, left = set(), [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        torchs = "BatchNorm" in node.name() and getattr(node, "_saved_training", False)
        if torchs or getattr(
            getattr(node, "run", None), "batch", False
        ):  # the latter: see xhat.torch.autograd
            function = "torch.nn.functional" if torchs else "xhat.torch"
            raise ArgumentError(
                f"accumulate: the model calls {function}.batch_norm with training=True, expected layers alone. "
                "Use BatchNorm1d, 2d or 3d."
            )
        left += [before for before, _ in node.next_functions]


def _by_the_batch(m: Any) -> bool:
    if isinstance(m, BatchNorm):
        return (m.training and not m.frozen_statistics) or m.running_mean is None
    return m.training or m.running_mean is None


@contextmanager
def failures_announced(layers: dict[str, Any]) -> Iterator[None]:
    """If the block raises, ranks that share a batch with this one get an error, too."""
    shared = (layer for layer in layers.values() if isinstance(layer, SyncBatchNorm))
    with ExitStack() as stack:
        for group in {layer._group for layer in shared if layer._exchanges()}:
            header = FrameHeader("statistics", "micro-batches", 0)
            stack.enter_context(frames.announce_failure(header, group, nested=True))
        yield


@contextmanager
def walked(layers: dict[str, Any]) -> Iterator[None]:
    """These layers with the batch of all walkers."""
    with ExitStack() as stack:
        for path, layer in layers.items():
            stack.enter_context(_walked(path, layer))
        yield


@contextmanager
def _walked(path: str, layer: Any) -> Iterator[None]:
    torchs = not isinstance(layer, BatchNorm)
    if torchs:
        convert_layer(layer)
    kind: Any = type(layer)
    try:
        layer._walked_path = path or kind.__name__
        layer.__class__ = _walked_class(kind)
        yield
    finally:
        layer.__class__ = kind
        del layer._walked_path
        if torchs:
            revert_layer(layer)
