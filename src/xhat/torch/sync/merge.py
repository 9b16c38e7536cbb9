"""Moments, or sums, of many ranks or batches merged into one; and the running statistics of all ranks.

The order is a tree over neighbours that depends on the number of parts alone, so that all ranks, which have the same
parts, get the same bits. The formula is in `xhat.equations`. The arrays are NumPy's: they are short, and a call of
torch takes longer than the arithmetic.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat import equations
from xhat.errors import ArgumentError
from xhat.torch.inputs import check_known
from xhat.torch.sync import frames, groups
from xhat.torch.sync.header import Array, FrameHeader

__all__ = ["Moments", "added", "layer_by_layer", "merge", "merge_running_statistics", "merged"]

M = TypeVar("M", bound=nn.Module)

# m, mean and m2, of shape (C,) or (..., C): arrays or tensors. m may broadcast.
Moments = tuple[Any, Any, Any]


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two batches together. A batch with m = 0 is ignored, even if its mean and m2 are NaN.

    Of arrays, or of tensors, which the host does not read.
    """
    (ma, mean_a, m2_a), (mb, mean_b, m2_b) = a, b
    xp: Any = torch if isinstance(ma, torch.Tensor) else np
    with np.errstate(all="ignore"):  # 0 / 0 where both are empty; NaN and infinity are valid values here
        m, mean, m2 = equations.merge(ma, mean_a, m2_a, mb, mean_b, m2_b)
    if xp is np and ma.all() and mb.all():
        return m, mean, m2
    mean = xp.where(mb == 0, mean_a, xp.where(ma == 0, mean_b, mean))
    return m, mean, xp.where(mb == 0, m2_a, xp.where(ma == 0, m2_b, m2))


def merged(m: Array, mean: Array, m2: Array) -> Moments:
    """The moments of all batches along dimension 0. m: (n, 1) or (n, C). mean, m2: (n, C)."""
    moments: Moments = _reduce_pairwise((m, mean, m2), merge)
    return moments


def added(sums: Array) -> Array:
    """The sum along dimension 0."""
    result: Array = _reduce_pairwise((sums,), lambda a, b: (a[0] + b[0],))[0]
    return result


def _reduce_pairwise(parts: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Combines neighbours along dimension 0 of these arrays until one is left. A last one without a neighbour stays."""
    while (n := len(parts[0])) > 1:
        even = n // 2 * 2
        pairs = combine(tuple(p[0:even:2] for p in parts), tuple(p[1:even:2] for p in parts))
        if even < n:
            pairs = tuple(np.concatenate((q, p[even:])) for q, p in zip(pairs, parts, strict=True))
        parts = pairs
    return tuple(p[0] for p in parts)


def layer_by_layer(gathered: Array, sizes: Iterable[Sequence[int]]) -> Iterator[list[Array]]:
    """Splits (ranks, k) values, the arrays of all layers in turn, into each layer's arrays (ranks, size)."""
    for mine in sizes:
        *arrays, gathered = np.split(gathered, np.cumsum(mine), axis=1)
        yield arrays


# ---------------------------------------------------------------------------------------------- running statistics


def merge_running_statistics(model: M, process_group: Any = None) -> M:
    """Merge the running statistics of all ranks, for every batch norm in a model, torch's or xhat's.

    ::

        n    = sum of n_r
        mean = sum of n_r mean_r / n
        var  = sum of n_r (var_r + (mean_r - mean)^2) / n

    n_r is num_batches_tracked of rank r (1 for a layer that does not count), so that a rank weighs as much as the
    batches it has seen, and a rank that has seen none is ignored. The second term of var is the variance between the
    ranks' means; an average of variances would lack it.

    Parameters
    ----------
    model : torch.nn.Module
        The model. It is changed in place.
    process_group : torch.distributed.ProcessGroup, optional
        The ranks; by default all.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ExchangeError
        On every rank, if the ranks' models differ. Then nothing has changed.
    ArgumentError
        If ``model`` is not a module, or for a lazy layer that has had no input yet.

    See Also
    --------
    SyncBatchNorm : A layer with the statistics of all ranks in each batch.

    Notes
    -----
    num_batches_tracked becomes the largest n_r, so that repeated merging does not make it grow. Running statistics are
    exponential averages: the result is the average of what the ranks have, not the moments of all their data, which
    `recalibrate` computes. Frozen layers are merged like others, which changes nothing if all ranks have the same
    values.

    There is one exchange for the whole model. Without a process group of several ranks nothing is done.

    References
    ----------
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.

    Examples
    --------
    Each rank calls it before it saves or evaluates the model; here there is one rank:

    >>> import xhat.torch as xt
    >>> layer = xt.BatchNorm1d(2)
    >>> xt.merge_running_statistics(layer) is layer
    True
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"merge_running_statistics: model is {type(model).__name__}, expected a torch.nn.Module."
        )
    group = groups.group_name(process_group)
    layers: dict[str, Any] = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
    }
    if not layers or groups.world_size(group) == 1:
        return model
    check_known("merge_running_statistics", layers)
    values = torch.cat([t.cpu() for layer in layers.values() for t in _count_mean_var(layer)]).numpy()
    channels = {path: len(layer.running_mean) for path, layer in layers.items()}
    checksum = zlib.crc32(repr(channels).encode())
    name = f"{len(layers)} layers, {checksum:08x}"
    header = FrameHeader("running statistics", name, sum(channels.values()))
    gathered = layer_by_layer(frames.gather(values, header, group), [(1, c, c) for c in channels.values()])
    for layer, (n, mean, var) in zip(layers.values(), gathered, strict=True):
        if n.any():
            all_n, merged_mean, m2 = merged(n, mean, n * var)
            layer.running_mean.copy_(torch.from_numpy(merged_mean))
            layer.running_var.copy_(torch.from_numpy(equations.variance(m2, all_n)))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(int(n.max()))
    return model


def _count_mean_var(layer: Any) -> list[torch.Tensor]:
    """n, mean and var of one layer, in float64."""
    batches = layer.num_batches_tracked
    n = layer.running_mean.new_ones(1) if batches is None else batches.reshape(1)
    return [t.detach().double() for t in (n, layer.running_mean, layer.running_var)]
