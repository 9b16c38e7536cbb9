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

    ::

        training      y of the samples of group k = BatchNorm(x of these samples)
                      the running statistics follow the moments of all groups merged:
                      those of the whole batch
        evaluation    as `BatchNorm`

    The arguments, parameters, buffers and state_dict are those of `BatchNorm`, with groups as the second argument.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    groups : int
        The number of groups. The samples of group k are ``x[k::groups]``.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        Unless groups is an int of at least 1, or if another option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm` does.

    Notes
    -----
    If n = N mod groups is not 0, the first n groups have one more sample: they share the first n (N // groups + 1)
    samples in this way, and the others the rest. A batch that is too small has fewer groups: none has a single value
    per channel, if two values exist.

    A mask costs one call a group. On many processes, by `convert_sync`, group k is that of all ranks, which need the
    same N.

    References
    ----------
    Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch training
    of neural networks", 2017.

    Examples
    --------
    Samples 0 and 2 are one group, samples 1 and 3 the other:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.GhostBatchNorm1d(1, groups=2)
    >>> y = layer(torch.tensor([[1.0], [2.0], [6.0], [7.0]]))
    >>> y.flatten().detach().round(decimals=3)
    tensor([-1., -1.,  1.,  1.])
    >>> layer.running_mean
    tensor([0.4000])
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
        """Return the line of `BatchNorm`, and the number of groups."""
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
    """Batch normalization of groups of a batch over (N, C) or (N, C, L).

    ::

        training      y of the samples of group k = BatchNorm(x of these samples)
                      the running statistics follow the moments of all groups merged:
                      those of the whole batch
        evaluation    as `BatchNorm`

    The arguments, parameters, buffers and state_dict are those of `BatchNorm1d`, with groups as the second argument.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    groups : int
        The number of groups. The samples of group k are ``x[k::groups]``.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        Unless groups is an int of at least 1, or if another option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm1d` does.

    Notes
    -----
    If n = N mod groups is not 0, the first n groups have one more sample: they share the first n (N // groups + 1)
    samples in this way, and the others the rest. A batch that is too small has fewer groups: none has a single value
    per channel, if two values exist.

    A mask costs one call a group. On many processes, by `convert_sync`, group k is that of all ranks, which need the
    same N.

    References
    ----------
    Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch training
    of neural networks", 2017.

    Examples
    --------
    Samples 0 and 2 are one group, samples 1 and 3 the other:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.GhostBatchNorm1d(1, groups=2)
    >>> y = layer(torch.tensor([[1.0], [2.0], [6.0], [7.0]]))
    >>> y.flatten().detach().round(decimals=3)
    tensor([-1., -1.,  1.,  1.])
    >>> layer.running_mean
    tensor([0.4000])
    """


class GhostBatchNorm2d(GhostBatchNorm, nn.BatchNorm2d):
    """Batch normalization of groups of a batch over (N, C, H, W).

    ::

        training      y of the samples of group k = BatchNorm(x of these samples)
                      the running statistics follow the moments of all groups merged:
                      those of the whole batch
        evaluation    as `BatchNorm`

    The arguments, parameters, buffers and state_dict are those of `BatchNorm2d`, with groups as the second argument.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    groups : int
        The number of groups. The samples of group k are ``x[k::groups]``.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        Unless groups is an int of at least 1, or if another option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm2d` does.

    Notes
    -----
    If n = N mod groups is not 0, the first n groups have one more sample: they share the first n (N // groups + 1)
    samples in this way, and the others the rest. A batch that is too small has fewer groups: none has a single value
    per channel, if two values exist.

    A mask costs one call a group. On many processes, by `convert_sync`, group k is that of all ranks, which need the
    same N.

    References
    ----------
    Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch training
    of neural networks", 2017.

    Examples
    --------
    Samples 0 and 2 are one group, samples 1 and 3 the other:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.GhostBatchNorm2d(1, groups=2)
    >>> y = layer(torch.tensor([1.0, 2.0, 6.0, 7.0]).reshape(4, 1, 1, 1))
    >>> y.flatten().detach().round(decimals=3)
    tensor([-1., -1.,  1.,  1.])
    >>> layer.running_mean
    tensor([0.4000])
    """


class GhostBatchNorm3d(GhostBatchNorm, nn.BatchNorm3d):
    """Batch normalization of groups of a batch over (N, C, D, H, W).

    ::

        training      y of the samples of group k = BatchNorm(x of these samples)
                      the running statistics follow the moments of all groups merged:
                      those of the whole batch
        evaluation    as `BatchNorm`

    The arguments, parameters, buffers and state_dict are those of `BatchNorm3d`, with groups as the second argument.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    groups : int
        The number of groups. The samples of group k are ``x[k::groups]``.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        Unless groups is an int of at least 1, or if another option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm3d` does.

    Notes
    -----
    If n = N mod groups is not 0, the first n groups have one more sample: they share the first n (N // groups + 1)
    samples in this way, and the others the rest. A batch that is too small has fewer groups: none has a single value
    per channel, if two values exist.

    A mask costs one call a group. On many processes, by `convert_sync`, group k is that of all ranks, which need the
    same N.

    References
    ----------
    Hoffer, Hubara and Soudry, "Train longer, generalize better: closing the generalization gap in large batch training
    of neural networks", 2017.

    Examples
    --------
    Samples 0 and 2 are one group, samples 1 and 3 the other:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.GhostBatchNorm3d(1, groups=2)
    >>> y = layer(torch.tensor([1.0, 2.0, 6.0, 7.0]).reshape(4, 1, 1, 1, 1))
    >>> y.flatten().detach().round(decimals=3)
    tensor([-1., -1.,  1.,  1.])
    >>> layer.running_mean
    tensor([0.4000])
    """
