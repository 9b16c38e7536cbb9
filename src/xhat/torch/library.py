"""Operators for whoever records a graph (compile, export, make_fx, fake tensors): opaque calls of the kernels.

    xhat::batch_norm            y, statistics, count
    xhat::batch_norm_backward   dx, dweight, dbias, dresidual
    xhat::track                 running statistics, in place: a graph replayed by activation checkpointing asks anew

On devices without kernels the equations are recorded as torch's own operations, which a compiler can fuse; on them the
operators run the same equations.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from xhat.torch import composed, cpu
from xhat.torch.cpu import Pass
from xhat.torch.errors import TensorArgumentError
from xhat.torch.internals import plain, recomputing, tangents, transforming
from xhat.torch.options import Batch, Options, options_of
from xhat.torch.statistics import Running, move
from xhat.torch.tensors import check_gradient, check_statistics, nothing_to_average

__all__ = ["OPTIONS", "asked", "backward_fake", "batch_norm", "forward_fake", "returned"]

Maybe = Tensor | None

_library = torch.library.Library("xhat", "DEF")
OPTIONS = "float eps, int correction, str? activation, float slope"
_library.define(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    f"{OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? extra, Tensor? mask, "
    f"Tensor statistics, bool residual, {OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "track(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!)? batches, Tensor(d!)? skipped, "
    "Tensor statistics, Tensor count, float? momentum, int correction, int running_correction, str nonfinite) -> ()"
)
_operators = torch.ops.xhat


def batch_norm(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, mean: Maybe, var: Maybe, o: Options
) -> tuple[Tensor, Batch | None]:
    """As `composed.batch_norm`, as the operator where that has a kernel: with the batch's own statistics, on a CPU.

    An evaluation is a chain of elementwise operations, which a compiler fuses and every exporter knows.
    """
    if mean is not None and var is not None:
        return _evaluated(x, weight, bias, residual, mean, var, o), None
    if x.device.type != "cpu" or (mask is not None and mask.requires_grad):
        return composed.batch_norm(x, weight, bias, residual, mask, None, None, o)
    y, statistics, count = _operators.batch_norm(x, weight, bias, residual, mask, *o)
    return y, Batch(statistics.detach(), count.detach())


def _evaluated(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mean: Tensor, var: Tensor, o: Options
) -> Tensor:
    if torch.onnx.is_in_onnx_export():  # as one node, which runtimes fold into a convolution
        pre = F.batch_norm(x, mean, var, weight, bias, False, 0.0, o.eps)
        return composed.activate(pre if residual is None else pre + residual, o)
    return composed.batch_norm(x, weight, bias, residual, None, mean, var, o, dtype=torch.float32)[0]


# ------------------------------------------------------------------------------------------------- what they run


def _forward(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_tangents(x, weight, bias, residual, mask)
    if nothing_to_average(x, weight, bias, residual, mask, None, None):
        nothing = x.new_zeros((2, x.shape[1]), dtype=torch.float64)
        return torch.empty_like(x), nothing, nothing.new_zeros(())
    if not plain(x, weight, bias, residual, mask):
        return _forward_composed(x, weight, bias, residual, mask, *options)
    p = Pass(x, _checked(*options), None, residual is not None, mask)
    y = cpu.normalize(x, weight, bias, residual, p)
    return y, p.statistics, torch.as_tensor(p.count, dtype=torch.float64, device="cpu")


def _forward_composed(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y, batch = composed.batch_norm(x, weight, bias, residual, mask, None, None, Options(*options))
    return y, batch.statistics, torch.as_tensor(batch.count, dtype=torch.float64, device=x.device)


def _backward(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, mask: Maybe, statistics: Tensor,
    residual: bool, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    refuse_tangents(dy, x, weight, bias, extra, mask)
    if nothing_to_average(x, weight, bias, extra, mask, None, None):
        mask = None  # which has nothing to weigh
    if not plain(dy, x, weight, bias, extra, mask):
        return _backward_composed(dy, x, weight, bias, extra, mask, statistics, residual, *options)
    o = _checked(*options)
    check_gradient(dy, x, extra, statistics, separate(residual, o))
    p = Pass(x, o, None, residual, mask)
    p.statistics = statistics.contiguous()
    needs = (True, weight is not None, bias is not None, separate(residual, o))
    return returned(cpu.gradients(dy, x, weight, bias, extra, p, needs), x, weight, bias, residual, o)


def _backward_composed(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, mask: Maybe, statistics: Tensor,
    residual: bool, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o = Options(*options)
    found = composed.gradients(dy, x, weight, bias, extra, mask, None, residual, o)
    return returned(found, x, weight, bias, residual, o)


def _checked(eps: float, correction: int, activation: str | None, slope: float) -> Options:
    return options_of(eps, correction, ("leaky_relu", slope) if activation == "leaky_relu" else activation)


def refuse_tangents(*tensors: Maybe) -> None:
    """Raises TensorArgumentError for a tangent, which torch would drop in silence."""
    if tangents(*tensors):
        raise TensorArgumentError(
            "batch_norm: a recorded graph (compiled, exported or traced) has no forward-mode derivative. Differentiate "
            "the layer itself, or use torch.func.jvp, which this operator can follow."
        )


def separate(residual: bool, o: Options) -> bool:
    """Whether dresidual is a tensor of its own; without an activation it is dy."""
    return residual and o.activation is not None


def returned(
    found: tuple[Maybe, ...], x: Tensor, weight: Maybe, bias: Maybe, residual: bool, o: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four tensors, as a schema wants them: empty where there is no such gradient."""
    like = (x, weight, bias, x if separate(residual, o) else None)
    dx, dweight, dbias, dresidual = (
        x.new_empty(0) if t is None or d is None else d.to(t.dtype) for d, t in zip(found, like, strict=True)
    )
    return dx, dweight, dbias, dresidual


def asked(
    found: tuple[Tensor, ...], dy: Tensor, weight: Maybe, bias: Maybe, residual: bool, o: Options
) -> tuple[Maybe, ...]:
    """The same four as autograd wants them: None where there is nothing that asks for the gradient."""
    dx, dweight, dbias, dresidual = found
    return (dx, None if weight is None else dweight, None if bias is None else dbias,
            dresidual if separate(residual, o) else dy if residual else None)  # fmt: skip


def _track(
    running_mean: Tensor, running_var: Tensor, batches: Maybe, skipped: Maybe, statistics: Tensor, count: Tensor,
    momentum: float | None, correction: int, running_correction: int, nonfinite: str,
) -> None:  # fmt: skip
    check_statistics(statistics, len(running_mean))
    if not recomputing() and (transforming() or count != 0):  # an empty batch moves nothing
        statistics = statistics.contiguous()
        running = Running(running_mean, running_var, batches, skipped)
        move(running, Batch(statistics, count), momentum, correction, running_correction, nonfinite)


# --------------------------------------------------------------------------------- their shapes, for fake tensors


def forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, statistics, count."""
    statistics = x.new_empty((2, x.shape[1]), dtype=torch.float64)
    return torch.empty_like(x), statistics, x.new_empty((), dtype=torch.float64)


def backward_fake(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, mask: Maybe, statistics: Tensor,
    residual: bool, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dweight, dbias, dresidual."""
    new = [None if t is None else torch.empty_like(t) for t in (x, weight, bias, x)]
    return returned(tuple(new), x, weight, bias, residual, Options(*options))


def _track_fake(*_: Any) -> None:
    return None


# In a graph that runs inside of torch.func (grad, jvp, vmap, ...), the operators are torch's own operations.
for _name, _run, _transformed, _fake in (
    ("batch_norm", _forward, _forward_composed, forward_fake),
    ("batch_norm_backward", _backward, _backward_composed, backward_fake),
    ("track", _track, _track, _track_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    _library.impl(_name, _transformed, "FuncTorchDynamicLayerFrontMode")
    torch.library.register_fake(f"xhat::{_name}", _fake, lib=_library)


# --------------------------------------------------------------------------------------------------- their gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, mask, *options = inputs
    y, statistics, _ = output
    if mask is not None and mask.requires_grad:
        raise TensorArgumentError(
            "batch_norm: a recorded graph has no gradient with respect to its mask. Detach it."
        )
    ctx.mark_non_differentiable(*output[1:])
    ctx.options, ctx.residual = Options(*options), residual is not None
    ctx.save_for_backward(x, weight, bias, cpu.kept(residual, y, ctx.options), mask, statistics)


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    x, weight, bias, extra, mask, statistics = ctx.saved_tensors
    o: Options = ctx.options
    found = _operators.batch_norm_backward(dy, x, weight, bias, extra, mask, statistics, ctx.residual, *o)
    return *asked(found, dy, weight, bias, ctx.residual, o), *[None] * 5


def _keep_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, weight, bias, extra, mask, _statistics, ctx.residual, *options = inputs
    ctx.options = Options(*options)
    ctx.save_for_backward(dy, x, weight, bias, extra, mask)


def _differentiate_second(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
    dy, x, weight, bias, extra, mask = ctx.saved_tensors
    o: Options = ctx.options
    wanted = composed.second_gradients(cotangents, dy, x, weight, bias, extra, mask, None, ctx.residual, o)
    return *wanted, None, None, None, None, None, None, None


torch.library.register_autograd("xhat::batch_norm", _differentiate, setup_context=_keep, lib=_library)
torch.library.register_autograd(
    "xhat::batch_norm_backward", _differentiate_second, setup_context=_keep_second, lib=_library
)
