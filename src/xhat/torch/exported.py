"""A layer as torch's own operation, in graphs that other tools read: of torch.export, torch.jit.trace and for ONNX.

They move it to evaluation, quantize it, fold it into a convolution, count it, or load it without this library, and they
know aten::batch_norm. Graphs that run here, of torch.compile for example, have other operations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xhat.plan import Options, check_options
from xhat.torch import composed
from xhat.torch.inputs import Inputs, check_inputs
from xhat.torch.internals import unrecorded
from xhat.torch.running_stats import Running, momentum_of

__all__ = ["evaluation", "training"]


def training(t: Inputs, running: Running, momentum: Any, eps: Any, activation: Any) -> Tensor | None:
    """y, and the running statistics moved, by torch's operation; None if that cannot take these tensors.

    The conventions are torch's: correction 0, running_correction 1, no mask.
    """
    o = check_options("batch_norm", eps, 0, activation)
    unrecorded(check_inputs, t)
    if isinstance(momentum, Tensor) or not _torch_takes(t.x, t.weight, t.bias, running.mean, running.var):
        return None
    momentum = momentum_of(momentum)
    if momentum is None:
        return None
    if running.batches is not None:
        running.batches.add_(1)
    return _activated(
        F.batch_norm(t.x, running.mean, running.var, t.weight, t.bias, True, momentum, o.eps), t, o
    )


def evaluation(t: Inputs, o: Options) -> Tensor | None:
    """y with given statistics; None if torch's operation cannot take these tensors, or cannot differentiate them."""
    learned = any(s is not None and s.requires_grad for s in (t.mean, t.var))
    if learned or not _torch_takes(t.x, t.weight, t.bias, t.mean, t.var):
        return None
    return _activated(F.batch_norm(t.x, t.mean, t.var, t.weight, t.bias, False, 0.0, o.eps), t, o)


def _activated(pre: Tensor, t: Inputs, o: Options) -> Tensor:
    return composed.activate(pre if t.residual is None else pre + t.residual, o)


def _torch_takes(x: Tensor, *others: Tensor | None) -> bool:
    """Whether torch's operation takes these dtypes: all the same, or float32 for a narrower x."""
    dtypes = {t.dtype for t in others if t is not None}
    return dtypes == {x.dtype} or (dtypes == {torch.float32} and x.dtype.itemsize < 4)
