"""What tensors must be before anything is computed of them: one sentence for each mistake. No arithmetic lives here."""

from typing import Any

import torch
from torch import Tensor, nn

from xhat.checks import check_count, check_sum, shown
from xhat.errors import ArgumentError, DegenerateBatchError
from xhat.torch import cpu
from xhat.torch.errors import TensorArgumentError, TensorDtypeError, TensorShapeError, TensorTypeError
from xhat.torch.options import Options
from xhat.torch.weights import check_numbers

__all__ = [
    "check",
    "check_batch",
    "check_gradient",
    "check_known",
    "check_mask",
    "check_statistics",
    "check_tensor",
    "check_weights",
    "nothing_to_average",
]

Maybe = Tensor | None

_FLOATING = frozenset(cpu.CODES)


def nothing_to_average(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, mean: Maybe, var: Maybe
) -> bool:
    """Whether the batch that is to be averaged has no values; raises where it, or another tensor, is wrong."""
    check(x, weight, bias, residual, mean, var)
    if mean is not None:
        return False
    if x.numel():
        check_batch(x, mask)
    return not x.numel()


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


def check_batch(x: Tensor, mask: Maybe) -> None:
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


def check_weights(x: Tensor, mask: Tensor, o: Options) -> None:
    """The values of a mask, which the kernels' way checks itself."""
    check_numbers(mask)
    repeats = x.numel() // x.shape[1] // mask.numel()
    wide = torch.float32 if mask.is_mps else torch.float64  # which that device has not
    count, values = repeats * float(mask.sum(dtype=wide)), repeats * int(torch.count_nonzero(mask))
    check_sum(count, "batch_norm")
    check_count(count, values, o.correction, "batch_norm", x.shape, masked=True)


def check_tensor(name: str, value: Any) -> None:
    """Raises TensorTypeError for what is neither a tensor nor None."""
    if value is not None and not isinstance(value, Tensor):
        raise TensorTypeError(f"batch_norm: {name} is {type(value).__name__}, expected a tensor.")


def check_known(operation: str, layers: dict[str, Any]) -> None:
    """Raises ArgumentError where a layer is lazy and has met no input: path -> layer, with running statistics."""
    for path, layer in layers.items():
        if nn.parameter.is_lazy(layer.running_mean):
            raise ArgumentError(
                f"{operation}: layer {path!r} is lazy and has met no input, expected one that knows its channels. "
                "Call the model once first."
            )


def check_gradient(dy: Tensor, x: Tensor, extra: Maybe, statistics: Tensor, needs_extra: bool) -> None:
    """What a graph's backward pass is given: memory is read by these shapes and dtypes."""
    if dy.shape != x.shape or dy.dtype != x.dtype:
        raise TensorShapeError(
            f"batch_norm_backward: dy has shape {shown(dy.shape)} and dtype {dy.dtype}, expected {shown(x.shape)} and "
            f"{x.dtype}, those of input."
        )
    if needs_extra != (extra is not None):
        raise TensorArgumentError(
            f"batch_norm_backward: extra is {'missing' if needs_extra else 'given'}, expected the reverse: an "
            "activation after a residual is differentiated with it."
        )
    check_statistics(statistics, x.shape[1])
    if statistics.dtype != torch.float64:
        raise TensorDtypeError(
            f"batch_norm: statistics have dtype {statistics.dtype}, expected torch.float64."
        )


def check_statistics(statistics: Tensor, channels: int) -> None:
    """Raises TensorShapeError unless these are means and variances of so many channels."""
    if statistics.shape != (2, channels):
        raise TensorShapeError(
            f"batch_norm: statistics have shape {shown(statistics.shape)}, expected {shown((2, channels))}."
        )
