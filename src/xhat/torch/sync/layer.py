"""The layer whose batch lies on many processes, and what turns a model's batch norms into it."""

import copyreg
from functools import cache
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from xhat.errors import ArgumentError, ShapeError
from xhat.torch import synchronized
from xhat.torch.convert import OURS, adopt, reason_to_leave
from xhat.torch.errors import path_of
from xhat.torch.functional import normalized
from xhat.torch.internals import constant, tracing
from xhat.torch.layers import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from xhat.torch.options import Batch, Options
from xhat.torch.sync import frames
from xhat.torch.sync.frames import FrameHeader

__all__ = ["SyncBatchNorm", "convert_sync"]

Maybe = Tensor | None
M = TypeVar("M", bound=nn.Module)


class SyncBatchNorm(BatchNorm):
    """`BatchNorm` for a batch that lies on many processes: in training its statistics are those of all ranks' parts.

        [m, mu, m2] of each rank  ->  all ranks, in one exchange  ->  merged     y, running statistics
        [sum dy, sum dy xhat]     ->  all ranks, in one exchange  ->  added      dx

    The arguments are torch.nn.SyncBatchNorm's, then `BatchNorm`'s; input is (N, C, ...), of 2 dimensions or more. N may
    differ between ranks, and be 0 on some. mask weighs the values of all ranks together. Every rank has to call
    the layer, and to take the same part in the backward pass, in the same order as the others. Evaluation, frozen
    statistics and a single rank exchange nothing. process_group: the processes that share a batch, in a group that
    nobody else uses at the same time; None: all processes, in a group that is made for these exchanges.

    Gradients are those of the sum of all ranks' losses, as torch has them: dx exactly, dweight and dbias this rank's
    share, which DistributedDataParallel averages. So for the mean loss over a batch of n values in all, a rank that
    has n_r of them, out of p ranks, takes the sum of its losses times p / n.

    Not a subclass of torch.nn.SyncBatchNorm, which DistributedDataParallel refuses on a CPU.
    Raises what `BatchNorm` does, and ExchangeError, on every rank, where one is gone or ranks disagree (on the layer,
    its input's channels, dtype and need of a gradient, eps, correction, activation); then no running statistics have
    moved. A torch.func transform is refused with ArgumentError.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, process_group: Any = None, device: Any = None, dtype: Any = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.process_group = process_group

    _group = ""  # the process group's name
    _path: str | None = None

    @property
    def process_group(self) -> Any:
        """The processes that share a batch; None: all. Kept by name, so that the layer can be copied."""
        return frames.group_of(self._group) if self._group else None

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._group = frames.group_name(group)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ShapeError(f"expected at least 2D input (got {input.dim()}D input)")

    def _prepared(self, x: Tensor, activation: Any) -> tuple[Maybe, Maybe, Maybe, Maybe, Options]:
        if tracing() or not self._shares():
            return super()._prepared(x, activation)
        with frames.announce_failure(FrameHeader("statistics", self._called(), 0), self._group):
            return super()._prepared(x, activation)

    def _shares(self) -> bool:
        """Whether the statistics of this forward pass are those of many ranks."""
        return self.training and not self.frozen_statistics and frames.world_size(self._group) > 1

    def _normalized(
        self, x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, mean: Maybe, var: Maybe, o: Options
    ) -> tuple[Tensor, Batch | None]:  # fmt: skip
        if mean is not None or not self._shares():
            return normalized(x, weight, bias, residual, mask, mean, var, o)
        return synchronized.normalized(x, weight, bias, residual, mask, o, self._group, self._called())

    def _called(self) -> str:
        """The layer's path, as its first forward pass finds it: what ranks know each other's layers by."""
        if self._path is None:
            self._path = _path_in_model(self)
        return self._path


@constant
def _path_in_model(layer: nn.Module) -> str:
    """The layer's path in the running model, without what wraps the model."""
    return ".".join(part for part in path_of(layer).split(".") if part not in ("module", "_orig_mod"))


def convert_sync(model: M, process_group: Any = None) -> M:
    """Makes every batch norm in the model, torch's or ours, one whose batch lies on the processes of this group.

    Layers change their class, in place: parameters, buffers, hooks, mode and options stay, and so do what a subclass
    has of its own and calls that `convert` has fused. A layer on many processes, torch's or ours, keeps its group if
    none is given; a lazy layer becomes a `SyncBatchNorm` with its first input. Returns the model itself.
    Raises ArgumentError, and changes nothing, if there is a batch norm that can't be converted, with the reason.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"convert_sync: model is {type(model).__name__}, expected a torch.nn.Module.")
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, _BatchNorm)]
    refused = [f"{path or '(the model)'}: {why}" for path, m in found if (why := _why_not(m))]
    if refused:
        raise ArgumentError(
            f"convert_sync: a batch norm can't be converted ({'; '.join(refused)}). Nothing was changed. Convert the "
            "parts of the model that have none such."
        )
    for _, layer in found:
        _convert(layer, process_group)
    return model


def _why_not(m: nn.Module) -> str | None:
    if isinstance(m, BatchNorm) or (_keeps_forward(m) and not is_parametrized(m)):
        return None
    return reason_to_leave(m)


def _keeps_forward(m: nn.Module) -> bool:
    """Whether this is torch's layer or one that calls as torch's does, whatever else its class adds."""
    torchs = (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)
    return type(m).forward in torchs and "forward" not in vars(m)


def _convert(layer: Any, process_group: Any) -> None:
    kind: Any = type(layer)
    if not isinstance(layer, BatchNorm):
        torchs = vars(layer).pop("process_group", None)
        process_group = process_group or torchs
        own = _keeps_forward(layer) and kind not in OURS  # a subclass, whose class will stay
        if own or kind is nn.SyncBatchNorm:
            layer.__class__ = nn.BatchNorm2d
        adopt(layer)
        kind = kind if own and kind is not nn.SyncBatchNorm else type(layer)
    if not isinstance(layer, SyncBatchNorm):
        layer.__class__ = _on_many(kind)
    if process_group is not None:
        layer.process_group = process_group


@cache
def _on_many(kind: type[nn.Module]) -> type[SyncBatchNorm]:
    """The class of such a layer on many processes, with whatever a subclass has of its own."""
    if kind in (BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d):
        return SyncBatchNorm
    members = {"__module__": kind.__module__, "__reduce_ex__": _reduced}
    if issubclass(kind, LazyModuleMixin):
        members["cls_to_become"] = SyncBatchNorm
    return type(f"Sync{kind.__name__}", (SyncBatchNorm, kind), members)


def _reduced(layer: Any, protocol: Any) -> Any:
    """For pickle and deepcopy: by the class that the layer's own, which no module holds, was made from."""
    made = super(SyncBatchNorm, layer).__reduce_ex__(max(2, protocol))
    if not isinstance(made, tuple) or made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return made  # the class that it was made from has its own way
    return (_remake, (type(layer).__bases__[1], *made[1][1:]), *made[2:])


def _remake(kind: Any, *args: Any) -> Any:
    made = _on_many(kind)
    return made.__new__(made, *args)
