"""The gate of torch's tensors: checks what comes in, and finds the way that the caller's transform can follow."""

from typing import Any

import torch
from torch import Tensor

from xhat.checks import check_count, shown
from xhat.errors import ArgumentError, DegenerateBatchError
from xhat.torch import composed, cpu, library
from xhat.torch.autograd import normalize
from xhat.torch.errors import TensorDtypeError, TensorShapeError, TensorTypeError
from xhat.torch.internals import differentiating_forward, plain, tracing, transforming
from xhat.torch.options import Batch, Options, check_nonfinite, options_of
from xhat.torch.statistics import Running, follow

__all__ = ["batch_norm", "check", "check_mask", "normalized"]

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
    check(x, weight, bias, residual, mean, var)
    if mean is None and x.numel() == 0:  # nothing to average: any statistics will do
        mean, var = x.new_zeros(x.shape[1], dtype=torch.float32), x.new_ones(x.shape[1], dtype=torch.float32)
        return normalized(x, weight, bias, residual, None, mean, var, o)
    if mean is None:
        _check_batch(x, mask)
    else:
        mask = None  # weighs statistics, and these are given
    batch: Batch | None
    if transforming() or differentiating_forward():
        y, batch = composed.batch_norm(x, weight, bias, residual, mask, mean, var, o)
    elif tracing():
        y, batch = library.batch_norm(x, weight, bias, residual, mask, mean, var, o)
    elif plain(x, weight, bias, residual, mask, mean, var) and not _differentiable(mask, mean, var):
        y, batch = _by_kernels(x, weight, bias, residual, mask, mean, var, o)
    else:
        if mask is not None and not mask.is_meta:
            _check_weights(x, mask.detach(), o)
        y, batch = composed.batch_norm(x, weight, bias, residual, mask, mean, var, o)
    return y, batch if mean is None else None


def _differentiable(*tensors: Maybe) -> bool:
    """Whether a gradient is asked with respect to a mask or given statistics, which the kernels have none for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


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


# ------------------------------------------------------------------------------------------------------- checks

_FLOATING = frozenset(cpu.CODES)


def check(x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mean: Maybe, var: Maybe) -> None:
    """Shapes and dtypes, which every way knows, a traced one as well."""
    if x.dtype not in _FLOATING:
        raise TensorDtypeError(
            f"batch_norm: input has dtype {x.dtype}, expected float64, float32, float16 or bfloat16. "
            "Convert it first, for example input.float()."
        )
    if x.layout is not torch.strided or x.is_nested:
        raise TensorDtypeError("batch_norm: input is sparse or nested, expected a strided tensor.")
    if x.dim() < 2:
        raise TensorShapeError(
            f"batch_norm: input has shape {shown(x.shape)}, expected 2 dimensions or more, the second one the channels."
        )
    channels = (x.shape[1],)
    if not (
        _fits(weight, channels) and _fits(bias, channels) and _fits(mean, channels) and _fits(var, channels)
    ):
        _refuse_vector(x, weight=weight, bias=bias, running_mean=mean, running_var=var)
    if residual is not None:
        check_tensor("residual", residual)
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        _refuse_residual(residual, x)


def _fits(vector: Maybe, channels: tuple[int, ...]) -> bool:
    return vector is None or (vector.shape == channels and vector.dtype in _FLOATING)


def _refuse_vector(x: Tensor, **vectors: Maybe) -> None:
    for name, vector in vectors.items():
        if vector is not None and vector.shape != (x.shape[1],):
            raise TensorShapeError(
                f"batch_norm: {name} has shape {shown(vector.shape)}, expected ({x.shape[1]},) to match dimension 1 of "
                f"input {shown(x.shape)}."
            )
        if vector is not None and vector.dtype not in _FLOATING:
            raise TensorDtypeError(
                f"batch_norm: {name} has dtype {vector.dtype}, expected a real floating-point one."
            )


def _refuse_residual(residual: Tensor, x: Tensor) -> None:
    if residual.shape != x.shape:
        raise TensorShapeError(
            f"batch_norm: residual has shape {shown(residual.shape)}, expected {shown(x.shape)}, the shape of input."
        )
    raise TensorDtypeError(
        f"batch_norm: residual has dtype {residual.dtype}, expected {x.dtype}, the dtype of input."
    )


def _check_batch(x: Tensor, mask: Maybe) -> None:
    """What a batch must have for statistics of its own: more than one value per channel, a mask that broadcasts."""
    values = x.numel() // x.shape[1]
    if values == 1:
        raise DegenerateBatchError(
            f"batch_norm: Expected more than 1 value per channel when training, got input size {x.shape}: a single "
            "value has no variance. The usual causes: a last, smaller batch (drop_last=True in the loader), pooling "
            "to 1x1 before the layer, or a model used for inference without model.eval()."
        )
    if mask is not None:
        check_mask(x, mask)


def check_mask(x: Tensor, mask: Tensor) -> None:
    """Raises TensorShapeError unless the mask broadcasts to x, TensorDtypeError unless it can weigh."""
    check_tensor("mask", mask)
    target = [1 if a == 1 else n for a, n in enumerate(x.shape)]
    missing = x.dim() - mask.dim()
    sizes = [1] * missing + list(mask.shape)
    if missing < 0 or any(n not in (1, t) for n, t in zip(sizes, target, strict=True)):
        raise TensorShapeError(
            f"batch_norm: mask has shape {shown(mask.shape)}, expected one that broadcasts to {shown(target)}: input "
            f"is {shown(x.shape)}, and a mask has size 1 along the channels."
        )
    if mask.is_complex():
        raise TensorDtypeError(f"batch_norm: mask has dtype {mask.dtype}, expected bool or real weights.")


def _check_weights(x: Tensor, mask: Tensor, o: Options) -> None:
    """The values of a mask, which the kernels' way checks itself."""
    cpu.check_weights(mask)
    repeats = x.numel() // x.shape[1] // mask.numel()
    count, values = repeats * float(mask.sum(dtype=torch.float64)), repeats * int(torch.count_nonzero(mask))
    check_count(count, values, o.correction, "batch_norm", x.shape)


def check_tensor(name: str, value: Any) -> None:
    """Raises TensorTypeError for what is neither a tensor nor None."""
    if value is not None and not isinstance(value, Tensor):
        raise TensorTypeError(f"batch_norm: {name} is {type(value).__name__}, expected a tensor.")
