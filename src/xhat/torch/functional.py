"""The gate of torch's tensors: checks what comes in, and finds the way that the caller's transform can follow."""

from typing import Any

import torch
from torch import Tensor

from xhat.errors import ArgumentError
from xhat.torch import composed, cpu, library
from xhat.torch.autograd import normalize
from xhat.torch.errors import TensorShapeError
from xhat.torch.internals import differentiating_forward, plain, tracing, transforming, unrecorded
from xhat.torch.options import Batch, Options, check_nonfinite, options_of
from xhat.torch.statistics import Running, follow
from xhat.torch.tensors import check_tensor, check_weights, nothing_to_average

__all__ = ["batch_norm", "normalized"]

Maybe = Tensor | None


def batch_norm(
    input: Tensor, running_mean: Maybe, running_var: Maybe, weight: Maybe = None, bias: Maybe = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *, residual: Maybe = None, mask: Maybe = None,
    correction: int = 0, running_correction: int = 1, activation: Any = None, nonfinite: str = "propagate",
) -> Tensor:  # fmt: skip
    """y = act(weight (x - mu) / sqrt(var + eps) + bias [+ residual]): torch.nn.functional.batch_norm, and more.

        training     mu = sum w x / m     var = sum w (x - mu)^2 / (m - correction)     of this batch, and then
                     running_mean += momentum (mu - running_mean)
                     running_var  += momentum (var (m - correction) / (m - running_correction) - running_var)
        else         mu = running_mean    var = running_var

    input: (N, C, ...), float64, float32, float16 or bfloat16, any strides; weight, bias, running statistics: (C,), of
    any of these dtypes. residual: as input, added before the activation. mask: bool or weights w >= 0 that
    broadcast to input with size 1 along the channels (dimension 1): they weigh the statistics. activation: None,
    "relu", ("leaky_relu", slope), "silu". nonfinite: what a batch with NaN or infinity does to the running
    statistics: "propagate", "skip" (its channels stay as they are) or "raise".

    Returns y in input's dtype and memory format. An empty batch gives an empty y and leaves the statistics as they are.
    Raises classes of xhat.errors; where torch raises for the same mistake, they are of torch's class as well.
    Source: Ioffe and Szegedy 2015, algorithms 1 and 2; the running statistics are torch's convention.
    """
    for name, value in dict(input=input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias,
                            residual=residual, mask=mask).items():  # fmt: skip
        check_tensor(name, value)
    if training and (running_mean is None) != (running_var is None):
        raise ArgumentError(
            "batch_norm: one of running_mean and running_var is None, expected both or neither."
        )
    if not training and (running_mean is None or running_var is None):
        raise TensorShapeError(
            "batch_norm: running_mean and running_var are needed when training=False, got None. "
            "Pass them, or training=True for the batch's own statistics."
        )
    given = (None, None) if training else (running_mean, running_var)
    options = options_of(eps, correction, activation)
    check_nonfinite(nonfinite)
    y, batch = normalized(input, weight, bias, residual, mask, *given, options)
    if batch is not None and running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, None, None)
        follow(running, batch, momentum, correction, running_correction, nonfinite)
    return y


def normalized(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, mean: Maybe, var: Maybe, o: Options
) -> tuple[Tensor, Batch | None]:
    """y with given statistics, or, where mean is None, with the batch's own, which come with it (unless x is empty)."""
    if unrecorded(
        nothing_to_average, x, weight, bias, residual, mask, mean, var
    ):  # nothing to average: any statistics will do
        mean, var = x.new_zeros(x.shape[1], dtype=torch.float32), x.new_ones(x.shape[1], dtype=torch.float32)
    if mean is not None:
        mask = None  # weighs statistics, and these are given
    batch: Batch | None
    recorded, dual = tracing(), differentiating_forward()
    if transforming() or (recorded and dual):
        y, batch = composed.batch_norm(x, weight, bias, residual, mask, mean, var, o)
    elif recorded:
        y, batch = library.batch_norm(x, weight, bias, residual, mask, mean, var, o)
    elif not dual and _for_kernels(x, weight, bias, residual, mask, mean, var):
        y, batch = _by_kernels(x, weight, bias, residual, mask, mean, var, o)
    else:
        if mask is not None and not mask.is_meta:
            check_weights(x, mask.detach(), o)
        y, batch = composed.batch_norm(x, weight, bias, residual, mask, mean, var, o)
    return y, batch if mean is None else None


def _for_kernels(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, mean: Maybe, var: Maybe
) -> bool:
    """Whether all lie in plain memory, and no gradient is asked with respect to a mask or given statistics."""
    if not plain(x, weight, bias, residual, mask, mean, var):
        return False
    return not torch.is_grad_enabled() or not any(
        t is not None and t.requires_grad for t in (mask, mean, var)
    )


def _by_kernels(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, mean: Maybe, var: Maybe, o: Options
) -> tuple[Tensor, Batch | None]:
    differentiated = torch.is_grad_enabled()
    statistics = None
    if mean is not None and var is not None:
        if not differentiated:
            return cpu.evaluate(x, weight, bias, residual, mean, var, o), None
        statistics = torch.stack(
            (mean, var)
        ).double()  # a copy: the layer's may have moved when the gradient is asked
    p = cpu.Pass(x, o, statistics, residual is not None, mask)
    run = normalize if differentiated else cpu.normalize
    return run(x, weight, bias, residual, p), Batch(p.statistics, p.count)
