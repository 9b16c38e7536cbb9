"""Ghost batch norm: a batch in groups, each with statistics of its own, in one call of the kernels.

Sample i belongs to group i mod groups, so that (N, C, ...) is (N / groups, groups C, ...) without a copy: each group's
channels are channels of one larger layer. No formula of batch normalization lives here.
"""

from typing import Any

import torch
from torch import Tensor, nn

from xhat import equations
from xhat.errors import ArgumentError
from xhat.torch.inputs import Batch, Inputs
from xhat.torch.nn import BatchNorm
from xhat.torch.running_stats import Following

__all__ = ["GhostBatchNorm", "GhostBatchNorm1d", "GhostBatchNorm2d", "GhostBatchNorm3d"]


class GhostBatchNorm(BatchNorm):
    """What the layers share; use `GhostBatchNorm1d`, `GhostBatchNorm2d` or `GhostBatchNorm3d`.

        y of the samples of group k = BatchNorm(x of these samples), in training
        running statistics          follow the moments of all groups merged: those of the whole batch

    groups       how many; the samples of group k are x[k::groups]. If n = N mod groups is not 0, the first n groups
                 have one more: they share the first n (N // groups + 1) samples in this way, and the others the rest.
                 A batch that is too small has fewer groups: none has a single value per channel, if two values exist.

    The arguments, parameters, buffers and state_dict are those of `BatchNorm`; evaluation is the same. A mask costs one
    call a group. On many processes, by convert_sync, group k is that of all ranks, which need the same N.
    Raises what `BatchNorm` raises, and ArgumentError unless groups is an int of at least 1.
    Source: Hoffer, Hubara and Soudry, "Train longer, generalize better", 2017.
    """

    def __init__(self, num_features: int, groups: int, *args: Any, **options: Any) -> None:
        if type(groups) is not int or groups < 1:
            raise ArgumentError(
                f"{type(self).__name__}: groups is {groups!r}, expected an int of at least 1."
            )
        super().__init__(num_features, *args, **options)
        self.groups = groups

    def _normalized(
        self, t: Inputs, eps: Any, correction: Any, activation: Any, following: Following | None = None
    ) -> tuple[Tensor, Batch | None]:
        """Each part of the batch as a layer of (groups C) channels."""
        n, values = t.x.shape[0], t.x[:1, :1].numel()
        groups = max(1, min(self.groups, n if values > 1 else n // 2))
        if t.mean is not None or groups == 1 or not t.x.numel():
            return super()._normalized(t, eps, correction, activation, following)
        ys, batches = [], []
        for part, k in _parts(t, groups):
            calls = [_side_by_side(part, k)] if t.mask is None else _one_by_one(part, k)
            found = [
                super(GhostBatchNorm, self)._normalized(call, eps, correction, activation) for call in calls
            ]
            beside = torch.cat([y for y, _ in found], 1) if len(found) > 1 else found[0][0]
            ys.append(beside.unflatten(1, (k, -1)).flatten(0, 1))
            batches += [batch for _, batch in found if batch is not None]
        y = torch.cat(ys) if len(ys) > 1 else ys[0]
        return _like(y, t.x), _merged(batches, t.x.shape[1], correction)

    def extra_repr(self) -> str:
        """`BatchNorm`'s, and the number of groups."""
        return f"{super().extra_repr()}, groups={self.groups}"


def _like(y: Tensor, x: Tensor) -> Tensor:
    """y with channels last in memory, if x has them there: the groups' channels beside one another are a copy."""
    for order, dimensions in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if x.dim() == dimensions and x.is_contiguous(memory_format=order) and not x.is_contiguous():
            return y.contiguous(memory_format=order)
    return y


def _parts(t: Inputs, groups: int) -> list[tuple[Inputs, int]]:
    """The samples of groups of the same size, and how many groups they are."""
    size, more = divmod(len(t.x), groups)
    if not more:
        return [(t, groups)]
    first = more * (size + 1)
    mask = None if t.mask is None else t.mask.expand(len(t.x), 1, *t.x.shape[2:])
    # The backward of split is one cat; that of a slice fills the whole batch.
    halves = (
        (None, None) if a is None else a.split((first, len(t.x) - first)) for a in (t.x, t.residual, mask)
    )
    parts = [t._replace(x=x, residual=residual, mask=own) for x, residual, own in zip(*halves, strict=True)]
    return list(zip(parts, (more, groups - more), strict=True))


def _side_by_side(t: Inputs, k: int) -> Inputs:
    """The groups' channels beside one another: (n, k C, ...), a view of contiguous tensors."""
    x, residual = (None if a is None else a.unflatten(0, (-1, k)).flatten(1, 2) for a in (t.x, t.residual))
    weight, bias = (None if a is None else a.repeat(k) for a in (t.weight, t.bias))
    assert x is not None
    return t._replace(x=x, residual=residual, weight=weight, bias=bias)


def _one_by_one(t: Inputs, k: int) -> list[Inputs]:
    """Each group alone: a mask has no channels, and so none for each group."""
    assert t.mask is not None
    mask = t.mask.expand(len(t.x), 1, *t.x.shape[2:])
    groups = [[None if a is None else a[g::k] for a in (t.x, t.residual, mask)] for g in range(k)]
    return [t._replace(x=x, residual=residual, mask=own) for x, residual, own in groups]  # type: ignore[arg-type]


def _merged(batches: list[Batch], channels: int, correction: Any) -> Batch:
    """The statistics of all groups together: their means are values that weigh m, and m2 adds up."""
    mean, var = torch.cat([b.statistics.unflatten(1, (-1, channels)) for b in batches], 1).unbind(
        0
    )  # (groups, C)
    m = torch.cat([_column(b, channels) for b in batches])
    count = m.sum()
    mu, between = equations.moments(mean, lambda v: v.sum(0), count, m)
    m2 = (var * (m - correction)).sum(0) + between
    merged = torch.stack((mu, equations.variance(m2, count, correction)))
    if all(type(b.count) is float for b in batches):  # by kernels
        groups = [b.statistics.shape[1] // channels for b in batches]
        return Batch(merged, float(sum(b.count * k for b, k in zip(batches, groups, strict=True))))
    return Batch(merged, count)


def _column(batch: Batch, channels: int) -> Tensor:
    """m of each group in this call."""
    m, like = batch.count, batch.statistics
    m = m.to(like) if isinstance(m, Tensor) else like.new_full((), m)
    return m.expand(batch.statistics.shape[1] // channels, 1)


class GhostBatchNorm1d(GhostBatchNorm, nn.BatchNorm1d):
    """`GhostBatchNorm` for (N, C) and (N, C, L)."""


class GhostBatchNorm2d(GhostBatchNorm, nn.BatchNorm2d):
    """`GhostBatchNorm` for (N, C, H, W)."""


class GhostBatchNorm3d(GhostBatchNorm, nn.BatchNorm3d):
    """`GhostBatchNorm` for (N, C, D, H, W)."""
