"""The layer whose batch lies on many processes, and what turns a model's batch norms into it."""

from typing import Any

from torch import Tensor, nn

from xhat.errors import ShapeError
from xhat.torch import synchronized
from xhat.torch.errors import path_of
from xhat.torch.functional import normalized
from xhat.torch.internals import constant, tracing
from xhat.torch.layers import BatchNorm
from xhat.torch.options import Batch, Options
from xhat.torch.sync import frames
from xhat.torch.sync.frames import FrameHeader

__all__ = ["SyncBatchNorm"]

Maybe = Tensor | None


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
