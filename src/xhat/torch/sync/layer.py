"""The layer whose batch is split over several processes. What it computes and exchanges must never live here."""

from typing import Any

from torch import Tensor, nn

from xhat.errors import ShapeError
from xhat.torch.errors import path_of
from xhat.torch.functional import normalized
from xhat.torch.inputs import Batch, Inputs
from xhat.torch.internals import constant, tracing
from xhat.torch.nn import BatchNorm
from xhat.torch.sync import frames, shared_batch
from xhat.torch.sync.frames import FrameHeader

__all__ = ["SyncBatchNorm"]

Maybe = Tensor | None


class SyncBatchNorm(BatchNorm):
    """`BatchNorm` for a batch that is split over several processes: in training, its statistics are those of all ranks.

        forward    m, mu, m2 of each rank       -> all-gather -> merged -> y, running statistics
        backward   sum dy, sum dy xhat          -> all-gather -> added  -> dx

    The arguments are those of torch.nn.SyncBatchNorm, then the options of `BatchNorm`. input is (N, C, ...), with at
    least 2 dimensions; N may differ between ranks, and may be 0. mask weighs the values of all ranks together.
    process_group: the ranks that share a batch, in a group that nothing else uses at the same time; None: all ranks,
    in a group that is made for these exchanges. All ranks have to call the layer, and to run its backward pass, in the
    same order. Nothing is exchanged in evaluation, with frozen statistics, and with a single rank.

    Gradients are those of the sum of all ranks' losses, as torch defines them: dx is complete, and dweight and dbias
    are this rank's share, which DistributedDataParallel averages. For the mean loss over a batch of n values, each rank
    therefore takes the sum of its own losses times (number of ranks) / n.

    Not a subclass of torch.nn.SyncBatchNorm, which DistributedDataParallel refuses on a CPU.
    Raises what `BatchNorm` raises. Raises ExchangeError on every rank if one of them is gone or if they disagree (on
    the layer, its input's channels, dtype and need of a gradient, eps, correction, activation); then no running
    statistics have changed. Raises ArgumentError under a torch.func transform.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype, **options
        )
        self.process_group = process_group

    _group = ""  # the name of the process group
    _path: str | None = None

    @property
    def process_group(self) -> Any:
        """The ranks that share a batch; None: all. Stored by name, so that the layer can be copied and pickled."""
        return frames.group_of(self._group) if self._group else None

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._group = frames.group_name(group)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ShapeError(f"expected at least 2D input (got {input.dim()}D input)")

    def _prepared(self, x: Tensor) -> tuple[Maybe, Maybe, Maybe, Maybe]:
        if tracing() or not self._exchanges():
            return super()._prepared(x)
        with frames.announce_failure(FrameHeader("statistics", self._name_for_ranks(), 0), self._group):
            return super()._prepared(x)

    def _exchanges(self) -> bool:
        """Whether this forward pass uses the statistics of several ranks."""
        return self.training and not self.frozen_statistics and frames.world_size(self._group) > 1

    def _normalized(
        self, t: Inputs, eps: Any, correction: Any, activation: Any
    ) -> tuple[Tensor, Batch | None]:
        if t.mean is not None or not self._exchanges():
            return normalized(t, eps, correction, activation)
        return shared_batch.normalized(t, eps, correction, activation, self._group, self._name_for_ranks())

    def _name_for_ranks(self) -> str:
        """The layer's path in the model as of its first forward pass; ranks compare it in every frame."""
        if self._path is None:
            self._path = _path_in_model(self)
        return self._path


@constant
def _path_in_model(layer: nn.Module) -> str:
    """The layer's path in the running model, without the names of wrappers (DistributedDataParallel, compile)."""
    return ".".join(part for part in path_of(layer).split(".") if part not in ("module", "_orig_mod"))
