"""The arithmetic of a fold: a channelwise affine map behind or before a layer becomes the layer's weight and bias.

Every layer's weight is viewed as (group, output, input, tap). Which layers these are must never be decided here.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from xhat import equations
from xhat.torch.fold.norms import Affine

__all__ = [
    "Weights",
    "bound",
    "gain",
    "map_after",
    "map_before",
    "parameters",
    "products",
    "rounded",
    "scale_in_place",
    "scaled",
    "set_parameters",
    "sums_of_outputs",
]


class Weights(NamedTuple):
    """A layer's weight, and its bias (zeros if it has none)."""

    weight: Tensor
    bias: Tensor


def parameters(layer: Any) -> Weights:
    """The layer's weights in float64. A batch norm's are gamma and beta."""
    weight = layer.weight
    if weight is None:
        weight = torch.ones_like(layer.running_mean)
    weight = weight.detach().double()
    outputs = weight.shape[1] * layer.groups if isinstance(layer, _ConvTransposeNd) else len(weight)
    return Weights(weight, weight.new_zeros(outputs) if layer.bias is None else layer.bias.detach().double())


def map_after(layer: nn.Module, weights: Weights, f: Affine) -> Weights:
    """Of y = f(layer(x)): weight' = scale_o weight, and bias' = scale bias + shift."""
    return Weights(scaled(layer, weights.weight, f.scale), weights.bias * f.scale + f.shift)


def scaled(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """scale_o weight, for each output o."""
    w = _viewed(layer, weight)
    return _shaped(layer, w * scale.reshape(*w.shape[:2], 1, 1).to(w.dtype), weight)


def scale_in_place(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """`scaled`, in the memory of a contiguous weight."""
    w = _viewed(layer, weight)
    w.mul_(scale.reshape(*w.shape[:2], 1, 1).to(w.dtype))
    return weight


def sums_of_outputs(layer: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """The sum of a b over inputs and taps, for each output: (C,)."""
    return torch.einsum("goit,goit->go", _viewed(layer, a), _viewed(layer, b)).reshape(-1)


def map_before(layer: nn.Module, weights: Weights, f: Affine) -> Weights:
    """Of y = layer(f(x)): weight' = scale_i weight, and bias' = bias + sum over i and taps of weight shift_i.

    A linear layer may have several inputs for each channel of f, one after the other, as nn.Flatten puts them.
    """
    w = _viewed(layer, weights.weight)
    channels = (w.shape[0], 1, w.shape[2], 1)
    scale, shift = (v.repeat_interleave(w.shape[0] * w.shape[2] // len(v)).reshape(channels) for v in f)
    bias = weights.bias + (w * shift).sum((2, 3)).reshape(-1)
    return Weights(_shaped(layer, w * scale, weights.weight), bias)


def rounded(weights: Weights, dtype: torch.dtype) -> Weights:
    """The weights in the layer's dtype."""
    return Weights(*(w.to(dtype) for w in weights))


def set_parameters(layer: Any, weights: Weights, like: Tensor) -> None:
    """Makes these the layer's parameters, on the device of `like` and learned if it is."""
    for name, value in zip(("weight", "bias"), weights, strict=True):
        setattr(
            layer, name, nn.Parameter(value.contiguous().to(like.device), requires_grad=like.requires_grad)
        )
    if isinstance(layer, _BatchNorm):
        layer.affine = True


def gain(layer: Any, weights: Weights) -> Tensor:
    """The largest |y - bias| of each output channel for |x| <= 1 (a batch norm: for |x - mu| <= 1)."""
    total = sums_of_outputs(layer, weights.weight, weights.weight.sign())
    if isinstance(layer, _BatchNorm) and layer.running_var is not None:
        total = total * equations.reciprocal_std(layer.running_var.double(), float(layer.eps), torch.sqrt)
    return total


def bound(layer: Any, weights: Weights, reach: float, dtype: torch.dtype) -> float:
    """What rounding the weights to dtype changes in y at most, for |x| <= reach: ulp (gain reach + |bias|).

    ulp is the distance from 1 to the next number, which covers the two roundings of a weight that is computed in
    float64; below the normal numbers it is the distance between two of them, for each weight.
    """
    info = torch.finfo(dtype)
    if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
        reach += float(layer.running_mean.abs().max())
    largest = float((gain(layer, weights) * reach + weights.bias.abs()).max())
    return info.eps * largest + info.tiny * info.eps * (products(layer) * reach + 1)


def products(layer: nn.Module) -> int:
    """How many products are added up for one output."""
    weight: Any = layer.weight
    return 1 if isinstance(layer, _BatchNorm) else math.prod(_viewed(layer, weight).shape[2:])


def _viewed(layer: nn.Module, weight: Tensor) -> Tensor:
    """The weight as (group, output in the group, input in the group, tap)."""
    if isinstance(layer, _BatchNorm):
        return weight.reshape(-1, 1, 1, 1)
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    if isinstance(layer, _ConvTransposeNd):  # (input, output in the group, *kernel)
        inputs, outputs = weight.shape[0] // groups, weight.shape[1]
        return weight.reshape(groups, inputs, outputs, -1).transpose(1, 2)
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    return weight.reshape(groups, outputs, inputs, -1)


def _shaped(layer: nn.Module, viewed: Tensor, weight: Tensor) -> Tensor:
    """The inverse of `_viewed`."""
    back = viewed.transpose(1, 2) if isinstance(layer, _ConvTransposeNd) else viewed
    return back.reshape(weight.shape)
