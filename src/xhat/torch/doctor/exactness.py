"""The real error of a layer on its own input, in its own dtype and memory format, beside that of xhat's layer.

Nothing is judged here.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat import equations
from xhat.torch.doctor.layers import Layer
from xhat.torch.functional import normalized
from xhat.torch.inputs import Inputs
from xhat.torch.nn import BatchNorm

__all__ = ["Errors", "errors_of_call", "ours"]


class Errors(NamedTuple):
    """Largest errors of a call, in deviations, where |mean| / sigma is `offset` (the largest of a channel)."""

    offset: float
    theirs: float
    ours: float
    dtype: str
    layout: str


def ours(layer: Any, x: Tensor, training: bool) -> Tensor:
    """What xhat computes for this layer, without its activation."""
    given = (None, None) if training else (layer.running_mean, layer.running_var)
    return normalized(Inputs(x, layer.weight, layer.bias, None, None, *given), float(layer.eps), 0, None)[0]


def errors_of_call(
    layer: Layer, x: Tensor, y: Any, mean: Any, m2: Any, m: float, training: bool
) -> Errors | None:
    """The errors of y, the layer's result for x with these moments; None where it is not known what y should be."""
    module = layer.module
    plain = type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) or (
        isinstance(module, BatchNorm) and module.activation is None and module.correction == 0
    )
    if not plain or not isinstance(y, Tensor) or y.shape != x.shape or m <= 1:
        return None
    training = training or not layer.tracks
    if not training:
        mean, var = (t.double() for t in (module.running_mean, module.running_var))
    else:
        mean, var = (torch.from_numpy(np.asarray(v)).to(x.device) for v in (mean, equations.variance(m2, m)))
    shape = [1, -1, *[1] * (x.dim() - 2)]
    rstd = equations.reciprocal_std(var, layer.eps, torch.sqrt)
    gamma, beta = (
        torch.full_like(rstd, k) if p is None else p.detach().double()
        for p, k in ((module.weight, 1.0), (module.bias, 0.0))
    )
    exact = equations.normalize(x.detach().double(), *(t.reshape(shape) for t in (mean, rstd, gamma, beta)))
    scale = gamma.abs().clamp(min=1e-12).reshape(shape)
    theirs, mine = (
        float(((v.detach().double() - exact) / scale).abs().max()) for v in (y, ours(module, x, training))
    )
    last = x.dim() > 3 and x.is_contiguous(
        memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    )
    layout = "channels last" if last and not x.is_contiguous() else "contiguous"
    return Errors(float((mean * rstd).abs().max()), theirs, mine, str(x.dtype).removeprefix("torch."), layout)
