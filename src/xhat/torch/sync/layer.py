"""The layer whose batch is split over several processes. What it computes and exchanges must never live here."""

from typing import Any

from torch import Tensor

from xhat.checks import check_correction
from xhat.errors import ShapeError
from xhat.torch.inputs import CODES, Batch, Inputs, check_nonfinite
from xhat.torch.internals import constant, tracing
from xhat.torch.nn import BatchNorm
from xhat.torch.operators import Where
from xhat.torch.running_stats import Following, momentum_of
from xhat.torch.sync import frames, groups, names, shared_batch
from xhat.torch.sync.frames import FrameHeader

__all__ = ["SyncBatchNorm"]

Maybe = Tensor | None


class SyncBatchNorm(BatchNorm):
    """Batch normalization of a batch that is split over several processes.

    In training, its statistics are those of all ranks::

        forward    m, mu, m2 of each rank   -> all-gather -> merged -> y, running statistics
        backward   sum dy, sum dy xhat      -> all-gather -> added  -> dx

    The input is (N, C, ...), with at least 2 dimensions. N may differ between ranks, and may be 0. A mask weighs the
    values of all ranks together.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
    process_group : torch.distributed.ProcessGroup, optional
        The ranks that share a batch; by default all. The exchanges use a private copy of it.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    **options
        ``correction``, ``running_correction``, ``activation`` and ``nonfinite``, as for `BatchNorm2d`.

    Raises
    ------
    ExchangeError
        On every rank, if one of them is gone or has failed, or if they disagree (docs/scaling.md lists what is
        compared); then no running statistics have changed. Also if the process group was destroyed.
    ArgumentError
        Under a torch.func transform, or if an option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm2d` does.

    See Also
    --------
    convert_sync : Turn the batch norms of a model into these layers.
    merge_running_statistics : For layers that do not share their batches.

    Notes
    -----
    All ranks have to call the layer, and to run its backward pass, in the same order, from one thread. Nothing is
    exchanged in evaluation, with frozen statistics, and with a single rank.

    Gradients are those of the sum of all ranks' losses, as torch defines them: dx is complete, and dweight and dbias
    are this rank's share, which DistributedDataParallel averages. For the mean loss over a batch of n values, each
    rank therefore takes the sum of its own losses times (number of ranks) / n.

    The class is not a subclass of `torch.nn.SyncBatchNorm`, which DistributedDataParallel refuses on a CPU.

    Examples
    --------
    With a single process it is a batch norm:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.SyncBatchNorm(1)
    >>> layer(torch.tensor([[1.0], [2.0], [6.0]])).flatten().detach()
    tensor([-0.9258, -0.4629,  1.3887])
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
        """The ranks that share a batch; None for all. Stored by name, so that the layer can be copied and pickled."""
        return groups.group_of(self._group) if self._group else None

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._group = groups.group_name(group)

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
        if not self.training or self.frozen_statistics:
            return False
        ranks = groups.world_size(self._group)
        if ranks == 1 and self._group == "" and not tracing() and names.has_exchanged(self):
            groups.refuse_to_go_on_alone()
        return ranks > 1

    def _normalized(
        self, t: Inputs, eps: Any, correction: Any, activation: Any, following: Following | None = None
    ) -> tuple[Tensor, Batch | None]:
        if t.mean is not None or not self._exchanges():
            return super()._normalized(t, eps, correction, activation, following)
        if tracing():
            path, details = _names_in_graph(self)
            where = Where(self._group, path, details=details)
            return shared_batch.normalized(t, eps, correction, activation, where)
        path, group = self._name_for_ranks(), self._group
        with frames.announce_failure(FrameHeader("statistics", path, 0), group):
            where = Where(group, path, details=_details(self), batches=self._batches())
            result = shared_batch.normalized(t, eps, correction, activation, where)
        names.keep_number(self, path, group)
        return result

    def _name_for_ranks(self) -> str:
        """The layer's path in the model as of its first forward pass; ranks compare it in every frame."""
        if self._path is None:
            self._path = names.path_in_model(self)
        return self._path

    def _batches(self) -> int:
        """num_batches_tracked; -1 if the layer has none, if it does not move, and if the host would have to wait."""
        counter = self._buffers["num_batches_tracked"]
        if (
            counter is None
            or counter.is_meta
            or _moving(self) is None
            or frames.takes(counter.device, self._group)
        ):
            return -1
        return int(counter)


def _moving(layer: SyncBatchNorm) -> Maybe:
    """The running variance, if it follows this forward pass. While `recalibrate` records moments, it does not."""
    if not layer.track_running_stats or "_follow" in vars(layer) or layer.running_mean is None:
        return None
    return layer.running_var


def _details(layer: SyncBatchNorm) -> str:
    """`Where.details`: what ranks have to agree on, besides the options that the equations need."""
    follows: tuple[Any, ...] = (None, 0, "propagate", None)
    variance = _moving(layer)
    if variance is not None:
        follows = (
            momentum_of(layer.momentum),
            check_correction(layer.running_correction, "batch_norm", "running_correction"),
            check_nonfinite(layer.nonfinite),
            variance.dtype if variance.dtype in CODES else None,
        )
    number = names.number_of(layer, layer._name_for_ranks(), layer._group)
    affine = layer.weight is not None, layer.bias is not None
    return shared_batch.details(number, *follows, *affine, layer.frozen_affine)


@constant
def _names_in_graph(layer: SyncBatchNorm) -> tuple[str, str]:
    """The layer's path and details, for a graph that calls it."""
    path, details = layer._name_for_ranks(), _details(layer)
    names.keep_number(layer, path, layer._group)
    return path, details
