"""Gradient accumulation whose batch norms see the whole batch: micro-batches that go through the model in step.

What runs in turn is in `in_step`, a batch norm that does in `layers`, and what is kept for the backward pass in `kept`.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from xhat.checks import number, shown
from xhat.errors import ArgumentError, XhatError
from xhat.torch.accumulate.in_step import Walker, walk
from xhat.torch.accumulate.kept import Keep, check_keep, keeping
from xhat.torch.accumulate.layers import batch_norms, check_layers_alone, failures_announced, walked
from xhat.torch.accumulate.replicas import reduced_once
from xhat.torch.accumulate.restore import buffers_stay, gradients_added, state_kept
from xhat.torch.errors import first_line
from xhat.torch.internals import uncompiled
from xhat.torch.recalibrate import call, unwrapped
from xhat.torch.trees import tensors

__all__ = ["accumulate"]

Loss = Callable[[Any, Any], Tensor]


def accumulate(
    model: nn.Module,
    micro_batches: Iterable[Any],
    loss: Loss,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    weights: Sequence[float] | None = None,
    keep: str | Path = "inputs",
) -> Tensor:
    """Run the forward and backward pass of a batch in micro-batches, with the results of the whole batch.

    ::

        L = sum_i n_i / n loss(model(batch_i), batch_i)         n = sum_i n_i
        mu, var, sum dy, sum dy xhat of each batch norm: of all micro-batches together

    The call leaves in ``.grad`` (added to what is there), in running statistics and in counters what one pass of all
    samples would have left. All micro-batches go through the model in step: each waits at a batch norm until the
    moments of the others have come, and in the backward pass for their gradient sums.

    Parameters
    ----------
    model : torch.nn.Module
        The model in training. Its batch norms are torch's, timm's or xhat's, in any state.
    micro_batches : iterable
        Any number of micro-batches, of any sizes.
    loss : callable
        ``loss(output, micro_batch)``: the mean over the samples of a micro-batch, a scalar tensor.
    forward : callable, optional
        How the model is called, ``forward(model, micro_batch)``. The default is that of `recalibrate`.
    weights : sequence of float, optional
        n_i; by default the number of samples, the length of a micro-batch's first tensor. Pass others where the loss
        is the mean of something else, such as the tokens that are no padding.
    keep : {"inputs", "all", "host"} or path, default "inputs"
        What is kept for the backward pass:

        ``"inputs"``
            The inputs of blocks (the smallest modules with two batch norms or more), which are computed a second time.
        ``"all"``
            All saved tensors, as autograd does.
        ``"host"``
            All saved tensors, in the host's memory.
        a path
            All saved tensors, in temporary files in this folder.

    Returns
    -------
    torch.Tensor
        The loss L, detached.

    Raises
    ------
    ArgumentError
        If there are no micro-batches, if the loss is no scalar or has no gradient, for a batch norm that has a forward
        of its own, for a module that changes other buffers, and if micro-batches meet different batch norms.

    Notes
    -----
    `SyncBatchNorm` shares the batch with other ranks, too, which may have another number of micro-batches.
    DistributedDataParallel averages gradients once, at the end. Autocast holds as around the call. Each micro-batch
    has random numbers of its own, of one draw from the caller's. The model's hooks run once for each micro-batch,
    those in a block twice.

    If an exception is raised, gradients, buffers and random states are as before.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> _ = torch.manual_seed(0)
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
    >>> def loss(output, batch):
    ...     return nn.functional.mse_loss(output, batch[1])
    >>> micro_batches = zip(x.chunk(4), y.chunk(4))
    >>> found = xt.accumulate(model, micro_batches, loss, keep="all")
    >>> torch.allclose(found, loss(model(x), (x, y)))
    True
    """
    inner = unwrapped(model, "accumulate")
    batches = list(micro_batches)
    check_keep(keep)
    shares = _shares(batches, weights)
    layers = batch_norms(inner)
    losses: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(state_kept(inner))
        stack.enter_context(reduced_once(model))
        stack.enter_context(gradients_added(inner))
        stack.enter_context(buffers_stay(inner, layers))
        stack.enter_context(failures_announced(layers))
        stack.enter_context(walked(layers))
        pack = stack.enter_context(keeping(inner, keep, list(layers.values())))
        stack.enter_context(uncompiled())
        step = _Step(inner, loss, forward or _call, pack)
        walk([Walker(*each) for each in _parts(step, batches, shares, losses)])
    return torch.stack(losses).sum()


def _call(model: nn.Module, batch: Any) -> Any:
    return call(model, batch, "accumulate")


def _shares(batches: list[Any], weights: Sequence[float] | None) -> list[float]:
    """n_i / n. Raises ArgumentError."""
    if not batches:
        raise ArgumentError("accumulate: there are no micro-batches, expected at least one.")
    if weights is None:
        firsts = [next(tensors(batch), None) for batch in batches]
        unknown = next((k for k, t in enumerate(firsts) if t is None or not t.dim()), None)
        if unknown is not None:
            raise ArgumentError(
                f"accumulate: micro-batch {unknown} ({type(batches[unknown]).__name__}) holds no tensor with a row for "
                "each sample, expected one. Pass weights, the number of samples of each micro-batch."
            )
        weights = [len(t) for t in firsts if t is not None]
    n = [number(weight) for weight in weights]
    if len(n) != len(batches) or min(n) < 0 or not 0 < sum(n) < float("inf"):
        raise ArgumentError(
            f"accumulate: the weights are {n}, expected a number of at least 0 for each of {len(batches)} "
            "micro-batches, and not all 0."
        )
    return [k / sum(n) for k in n]


def _parts(step: "_Step", batches: list[Any], shares: list[float], losses: list[Tensor]) -> Any:
    """What each walker runs, the seed of its random numbers, and whether it is the last."""
    seeds = torch.empty(len(batches), dtype=torch.int64, device="cpu").random_().tolist()
    for k, (batch, share) in enumerate(zip(batches, shares, strict=True)):
        yield (lambda k=k, b=batch, s=share: losses.append(step(k, b, s))), seeds[k], k == len(batches) - 1


class _Step:
    """Forward and backward pass of one micro-batch."""

    def __init__(
        self, model: nn.Module, loss: Loss, forward: Callable[[nn.Module, Any], Any], pack: Keep
    ) -> None:
        self.model, self.loss, self.forward, self.pack = model, loss, forward, pack

    def __call__(self, k: int, batch: Any, share: float) -> Tensor:
        """The share in L."""
        with self.pack():
            value = self.loss(self.forward(self.model, batch), batch)
            _check_loss(value, k)
            if k == 0:
                check_layers_alone(value)
            value = value.reshape(()) * share
        try:
            value.backward()
        except XhatError:
            raise
        except RuntimeError as error:
            if isinstance(error, CheckpointError) or "modified by an inplace operation" in str(error):
                raise ArgumentError(
                    f'accumulate: a block can\'t be computed a second time ({first_line(error)}). Pass keep="all", '
                    '"host" or a folder.'
                ) from error
            raise
        return value.detach()


def _check_loss(value: Any, k: int) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"of shape {shown(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(
            f"accumulate: the loss of micro-batch {k} is {found}, expected a scalar tensor. Take its mean over the "
            "samples."
        )
    if not value.requires_grad:
        raise ArgumentError(
            f"accumulate: the loss of micro-batch {k} has no gradient, expected one. Compute it from the model's "
            "output, without detach() and no_grad()."
        )
