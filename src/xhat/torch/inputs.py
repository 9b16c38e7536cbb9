"""What tensors must be before anything is computed of them: one sentence for each mistake; and masks as weights.

No arithmetic of batch normalization lives here.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xhat.checks import Kind, check_count, check_sum, mask_remedy, shown
from xhat.errors import ArgumentError, DegenerateBatchError
from xhat.layout import weight_order, weight_sizes
from xhat.plan import DTYPES, Options, Plan
from xhat.torch.errors import TensorArgumentError, TensorDtypeError, TensorShapeError, TensorTypeError
from xhat.torch.memory import check_memory

__all__ = [
    "CODES",
    "NONFINITE",
    "Batch",
    "Inputs",
    "Moving",
    "as_mask",
    "check_device",
    "check_gradient",
    "check_inputs",
    "check_kinds",
    "check_known",
    "check_mask",
    "check_nonfinite",
    "check_statistics",
    "check_tensor",
    "check_weights",
    "weights_in_order",
]

Maybe = Tensor | None

# The kernels' code of each dtype that they take.
CODES = {getattr(torch, name): code for name, code in DTYPES.items()}
_MASKS = {*CODES, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
NONFINITE = ("propagate", "skip", "raise")


class Inputs(NamedTuple):
    """The tensors of one call.

    x: (N, C, ...). weight, bias: (C,). residual: as x. mask: of size 1 along the channels. mean, var: given statistics
    (C,), or None for the batch's own.
    """

    x: Tensor
    weight: Maybe
    bias: Maybe
    residual: Maybe
    mask: Maybe
    mean: Maybe
    var: Maybe


class Batch(NamedTuple):
    """A batch's statistics: mean and var = m2 / (m - c) of each channel (2, C), and m (a number, or a scalar).

    followed: whether the kernels that found them have moved the running statistics as well.
    """

    statistics: Tensor
    count: Any
    followed: bool = False


class Moving(NamedTuple):
    """Running statistics (C,) that kernels move in place; weight: None for 1 / (batches + 1); m: a number or scalar."""

    mean: Tensor
    var: Tensor
    batches: Maybe
    weight: float | None
    m: Any
    correction: int
    running_correction: int


def _check_devices(t: Inputs) -> None:
    names = ("input", "weight", "bias", "residual", "mask", "running_mean", "running_var")
    for name, tensor in zip(names, t, strict=True):
        if isinstance(tensor, Tensor):
            check_device(name, tensor, t.x.device)


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raises TensorArgumentError for a tensor on another device than the input's; a scalar may be anywhere."""
    if tensor.device != device and tensor.dim():
        raise TensorArgumentError(
            f"batch_norm: {name} is on {tensor.device} and input on {device}, expected one device. "
            "Move the layer with layer.to(input.device), or the tensor."
        )


def check_inputs(t: Inputs, operation: str = "batch_norm") -> None:
    """Raises where tensors do not fit each other, or a batch has no variance. No element is read.

    operation: "moments" for a part of a batch, which needs no variance.
    """
    x, weight, bias, residual, mask, mean, var = t
    check_tensor("residual", residual)
    _check_devices(t)
    if x.is_mkldnn:
        raise TensorDtypeError(
            "batch_norm: input is an MKL-DNN tensor, expected a strided one. Pass input.to_dense(), or convert this "
            "layer too: torch.utils.mkldnn.to_mkldnn(model.eval())."
        )
    if x.layout is not torch.strided or x.is_nested:
        raise TensorDtypeError("batch_norm: input is sparse or nested, expected a strided tensor.")
    for name, vector in (("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", var)):
        if vector is not None and vector.layout is not torch.strided:
            raise TensorDtypeError(f"batch_norm: {name} is sparse, expected a strided tensor.")
    kinds = (None if v is None else (v.shape, v.dtype) for v in (mean, var, weight, bias, residual))
    check_kinds(operation, x.shape, x.dtype, 1, mask is not None, *kinds)
    if mask is not None and mean is None and x.numel():
        check_mask(x, mask)


def check_kinds(
    operation: str, shape: tuple[int, ...], dtype: torch.dtype, axis: int, masked: bool, mean: Kind, var: Kind,
    weight: Kind, bias: Kind, residual: Kind,
) -> tuple[int, ...]:  # fmt: skip
    """The channel axes, if the shapes and dtypes of all tensors fit input. "moments" are those of a part of a batch.

    It runs when a plan is made, and while a graph is recorded: torch.compile has to be able to trace it. Raises
    TensorShapeError, TensorDtypeError, DegenerateBatchError.
    """
    if dtype not in CODES:
        raise TensorDtypeError(
            f"batch_norm: input has dtype {dtype}, expected float64, float32, float16 or bfloat16. "
            "Convert it first, for example input.float()."
        )
    if len(shape) < 2:
        raise TensorShapeError(
            f"batch_norm: input has shape {shown(shape)}, expected 2 dimensions or more, the second one the channels."
        )
    vectors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    for name, vector in vectors.items():
        if vector is not None:
            _check_vector(name, *vector, shape)
    if residual is not None:
        _check_residual(*residual, shape, dtype)
    if mean is None and operation == "batch_norm":
        _check_batch(shape)
    return (axis,)


def _check_vector(name: str, found: tuple[int, ...], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if found != (shape[1],):
        last = len(shape) > 2 and found == shape[-1:]
        remedy = " Channels are dimension 1: pass input.movedim(-1, 1) where they are last." if last else ""
        raise TensorShapeError(
            f"batch_norm: {name} has shape {shown(found)}, expected ({shape[1]},) to match dimension 1 of "
            f"input {shown(shape)}.{remedy}"
        )
    if dtype not in CODES:
        raise TensorDtypeError(f"batch_norm: {name} has dtype {dtype}, expected a real floating-point one.")


def _check_residual(
    found: tuple[int, ...], found_dtype: torch.dtype, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if found != shape:
        raise TensorShapeError(
            f"batch_norm: residual has shape {shown(found)}, expected {shown(shape)}, the shape of input."
        )
    if found_dtype != dtype:
        raise TensorDtypeError(
            f"batch_norm: residual has dtype {found_dtype}, expected {dtype}, the dtype of input."
        )


def _check_batch(shape: tuple[int, ...]) -> None:
    """Raises DegenerateBatchError for a batch with one value per channel."""
    values = 1
    for n in (shape[0], *shape[2:]):  # math.prod, in words that torch.compile can trace
        values = values * n
    if values == 1 and shape[1] != 0:
        raise DegenerateBatchError(
            f"batch_norm: Expected more than 1 value per channel when training, got input size {shape}: a single "
            "value has no variance. The usual causes: a last, smaller batch (drop_last=True in the loader), pooling "
            "to 1x1 before the layer, or a model used for inference without model.eval()."
        )


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
            f"{mask_remedy(tuple(mask.shape), tuple(x.shape), (1,))}"
        )
    if mask.layout is not torch.strided:
        raise TensorDtypeError("batch_norm: mask is sparse, expected a strided tensor. Pass mask.to_dense().")
    if mask.dtype not in _MASKS:
        raise TensorDtypeError(f"batch_norm: mask has dtype {mask.dtype}, expected bool or real weights.")


def check_weights(x: Tensor, mask: Tensor, o: Options) -> None:
    """Raises where a mask leaves no variance, or has what is no weight: `cpu.run_of` does so for the kernels."""
    _check_elements(mask)
    repeats = x.numel() // x.shape[1] // mask.numel()
    wide = torch.float32 if mask.is_mps else torch.float64  # MPS has no float64
    count, values = repeats * float(mask.sum(dtype=wide)), repeats * int(torch.count_nonzero(mask))
    check_sum(count, "batch_norm")
    check_count(count, values, o.correction, "batch_norm", x.shape, masked=True)


def _check_elements(mask: Tensor) -> None:
    """Raises ArgumentError for what is no weight."""
    check_memory(mask)
    if mask.dtype != torch.bool and not bool(((mask >= 0) & (mask < math.inf)).all()):
        raise ArgumentError(
            "batch_norm: mask has a negative, infinite or NaN weight, expected finite weights of at least 0."
        )


def weights_in_order(mask: Tensor, plan: Plan) -> Tensor:
    """A copy of the mask's elements in float64, in the order in which the kernels read them. Raises ArgumentError."""
    _check_elements(mask)
    own = mask.to(torch.float64, copy=True).expand([1 if a == 1 else n for a, n in enumerate(plan.shape)])
    return own.permute(weight_order(plan.view, len(plan.shape))).reshape(-1).contiguous()


def as_mask(weights: Tensor, plan: Plan) -> Tensor:
    """Such weights in the order of x's dimensions, of size 1 along the channels."""
    order = weight_order(plan.view, len(plan.shape))
    return weights.reshape(weight_sizes(plan.view, plan.shape)).permute(
        [order.index(a) for a in range(len(order))]
    )


def check_nonfinite(nonfinite: str) -> str:
    """The policy for batches with NaN or infinity. Raises ArgumentError for an unknown one."""
    if nonfinite not in NONFINITE:
        raise ArgumentError(
            f"batch_norm: nonfinite is {nonfinite!r}, expected one of {', '.join(map(repr, NONFINITE))}."
        )
    return nonfinite


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


def check_gradient(dy: Tensor, x: Tensor, saved: Maybe, statistics: Tensor, needs_saved: bool) -> None:
    """What a graph's backward pass is given: memory is read by these shapes and dtypes."""
    if dy.shape != x.shape or dy.dtype != x.dtype:
        raise TensorShapeError(
            f"batch_norm_backward: dy has shape {shown(dy.shape)} and dtype {dy.dtype}, expected {shown(x.shape)} and "
            f"{x.dtype}, those of input."
        )
    if needs_saved != (saved is not None):
        raise TensorArgumentError(
            f"batch_norm_backward: saved is {'missing' if needs_saved else 'given'}, expected the reverse: an "
            "activation after a residual is differentiated with it."
        )
    if saved is not None and (saved.shape != x.shape or saved.dtype != x.dtype):
        raise TensorShapeError(
            f"batch_norm_backward: saved has shape {shown(saved.shape)} and dtype {saved.dtype}, expected "
            f"{shown(x.shape)} and {x.dtype}, those of input."
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
