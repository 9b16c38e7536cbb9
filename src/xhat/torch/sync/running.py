"""The running statistics of many processes made one, where each has followed its own batches."""

import zlib
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat import equations
from xhat.errors import ArgumentError
from xhat.torch.sync import frames
from xhat.torch.sync.frames import FrameHeader
from xhat.torch.sync.merge import layer_by_layer, merged
from xhat.torch.tensors import check_known

__all__ = ["merge_running_statistics"]

M = TypeVar("M", bound=nn.Module)


def merge_running_statistics(model: M, process_group: Any = None) -> M:
    """Gives all ranks the running statistics of them all together, of every batch norm, torch's or ours.

        n = sum of n_r    mean = sum of n_r mean_r / n    var = sum of n_r (var_r + (mean_r - mean)^2) / n

    with n_r = num_batches_tracked of rank r (1 for a layer that does not count): a rank weighs as much as it has seen,
    in batches, and one that has seen nothing weighs nothing. The second term of var is what the ranks' means differ by,
    which an average of variances forgets. num_batches_tracked becomes the largest n_r, so that merging every so often
    does not make it grow. Running statistics are exponential averages: this is what the ranks remember, not the
    moments of all their data; for these, `recalibrate`. One exchange for the whole model; without a process group of
    several ranks nothing is done. Frozen layers take part as they are: if all ranks have the same, it stays.

    Returns the model. Raises ExchangeError on every rank, and changes nothing, if the ranks' models differ;
    ArgumentError for a lazy layer that has met no input yet.
    Source: Chan, Golub and LeVeque 1979.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"merge_running_statistics: model is {type(model).__name__}, expected a torch.nn.Module."
        )
    group = frames.group_name(process_group)
    layers: dict[str, Any] = {
        path: m
        for path, m in model.named_modules()
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None
    }
    if not layers or frames.world_size(group) == 1:
        return model
    check_known("merge_running_statistics", layers)
    numbers = torch.cat([t.cpu() for layer in layers.values() for t in _numbers(layer)]).numpy()
    widths = {path: len(layer.running_mean) for path, layer in layers.items()}
    mark = zlib.crc32(repr(widths).encode())
    subject = FrameHeader("running statistics", f"{len(layers)} layers, {mark:08x}", sum(widths.values()))
    ranks = frames.gather(numbers, subject, group)
    everybodys = layer_by_layer(ranks, [(1, c, c) for c in widths.values()])
    for layer, (n, mean, var) in zip(layers.values(), everybodys, strict=True):
        if n.any():
            together, mu, m2 = merged(n, mean, n * var)
            layer.running_mean.copy_(torch.from_numpy(mu))
            layer.running_var.copy_(torch.from_numpy(equations.variance(m2, together)))
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(int(n.max()))
    return model


def _numbers(layer: Any) -> list[torch.Tensor]:
    """n, mean and var of one layer."""
    batches = layer.num_batches_tracked
    n = layer.running_mean.new_ones(1) if batches is None else batches.reshape(1)
    return [t.detach().double() for t in (n, layer.running_mean, layer.running_var)]
