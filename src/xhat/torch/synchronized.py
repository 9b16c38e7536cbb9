"""One batch on many processes: its moments are exchanged and merged, and so are the sums of its gradient.

    forward    moments -> [exchange] -> merge -> normalize
    backward   gradient_sums -> [exchange] -> sum -> input_gradient

Operators, for eager calls and graphs alike:

    xhat::synchronized             y, statistics, count
    xhat::synchronized_backward    dx, dweight, dbias, dresidual; the parameters' are this rank's share
    xhat::rank_sum                 the sum over ranks, which is its own adjoint

The kernels' work is in `parts`, the formulas are in `xhat.equations`.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat import equations
from xhat.checks import check_count
from xhat.errors import ArgumentError
from xhat.torch import composed, cpu, parts
from xhat.torch.cpu import Pass
from xhat.torch.internals import differentiating_forward, plain, tracing, transforming
from xhat.torch.library import OPTIONS, asked, backward_fake, forward_fake, returned
from xhat.torch.options import Batch, Options
from xhat.torch.sync import frames
from xhat.torch.sync.frames import Array, FrameHeader
from xhat.torch.sync.merge import added, merged
from xhat.torch.tensors import check, check_mask

__all__ = ["normalized"]

Maybe = Tensor | None

_library = torch.library.Library("xhat", "FRAGMENT")
_WHERE = "str group, str layer"
_library.define(
    "synchronized(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    f"bool differentiated, {_WHERE}, {OPTIONS}) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "synchronized_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? extra, Tensor? mask, "
    f"Tensor statistics, Tensor count, bool residual, bool differentiated, {_WHERE}, {OPTIONS}) -> "
    "(Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"rank_sum(Tensor numbers, {_WHERE}) -> Tensor")
_operators = torch.ops.xhat


def normalized(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, o: Options, group: str, layer: str
) -> tuple[Tensor, Batch | None]:
    """y by the statistics of the batch of all ranks, which come with it (unless it is empty)."""
    if tracing():
        _check(x, weight, bias, residual, mask)
    else:
        with frames.announce_failure(FrameHeader("statistics", layer, 0), group):
            _check(x, weight, bias, residual, mask)
    differentiated = torch.is_grad_enabled() and x.requires_grad
    run = (
        _operators.synchronized if tracing() else Synchronized.apply if torch.is_grad_enabled() else _forward
    )
    y, statistics, count = run(x, weight, bias, residual, mask, differentiated, group, layer, *o)
    if tracing():
        return y, Batch(statistics.detach(), count.detach())
    m = float(count)
    return y, Batch(statistics.detach(), m) if m else None


def _check(x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe) -> None:
    _refuse_transforms()
    check(x, weight, bias, residual, None, None)
    if mask is not None:
        check_mask(x, mask)
        if mask.requires_grad and torch.is_grad_enabled():
            raise ArgumentError(
                "batch_norm: mask requires a gradient, which a batch on many processes has none for. Detach it."
            )


def _refuse_transforms() -> None:
    if transforming() or differentiating_forward():
        raise ArgumentError(
            "batch_norm: torch.func and forward-mode gradients do not reach other processes. Use backward(), "
            "or a layer without a process group."
        )


# ------------------------------------------------------------------------------------------------------- forward


def _moments(x: Tensor, mask: Maybe) -> Array:
    """Of this rank: m, how many values have a weight, how many there are at all; then means and m2."""
    count, values, moments = (parts if plain(x, mask) else composed).moments(x, mask)
    return np.concatenate(((count, values, x.numel() // x.shape[1]), moments.flatten().cpu().numpy()))


def _forward(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, differentiated: bool, group: str, layer: str,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    o = Options(*options)
    channels = x.shape[1]
    subject = FrameHeader("statistics", layer, channels, x.dtype, differentiated, *o)
    with frames.announce_failure(subject, group):
        mine = _moments(x, mask)
    ranks = frames.gather(mine, subject, group)
    (m,), mean, m2 = merged(ranks[:, :1], ranks[:, 3 : 3 + channels], ranks[:, 3 + channels :])
    values, everything = added(ranks[:, 1:3]).astype(int)
    if everything:
        check_count(m, values, o.correction, "batch_norm", (everything, channels), masked=values < everything)
        var = equations.variance(m2, m, o.correction)
    else:  # nothing to average: any statistics will do
        var = m2 + 1
    statistics = torch.from_numpy(np.stack((mean, var))).to(x.device)
    count = torch.full((), m, dtype=torch.float64, device=x.device)
    if plain(x, weight, bias, residual):
        y = cpu.normalize(x, weight, bias, residual, Pass(x, o, statistics, residual is not None))
    else:
        y, _ = composed.batch_norm(x, weight, bias, residual, None, statistics[0], statistics[1], o)
    return y, statistics, count


# ------------------------------------------------------------------------------------------------------ backward


def _sum(sums: Tensor, subject: FrameHeader, group: str) -> Tensor:
    """The sum over all ranks, in this shape."""
    ranks = frames.gather(sums.detach().flatten().cpu().numpy(), subject, group)
    return torch.from_numpy(added(ranks)).to(sums.device).reshape(sums.shape)


def _backward(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, mask: Maybe, statistics: Tensor, count: Tensor,
    residual: bool, differentiated: bool, group: str, layer: str, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o = Options(*options)

    def total(sums: Tensor) -> Tensor:
        if not differentiated or not count:  # nobody needs dx, or there is none
            return sums
        return _sum(sums, FrameHeader("gradient sums", layer, x.shape[1], x.dtype, True, *o), group)

    if plain(dy, x, weight, bias, extra, mask):
        found = parts.gradients(dy, x, weight, bias, extra, mask, statistics, float(count), residual, o,
                                total if differentiated else None)  # fmt: skip
    else:
        others = composed.Others(total, count, statistics[0])
        found = composed.gradients(dy, x, weight, bias, extra, mask, statistics, residual, o, others)
    dx, dweight, dbias, dresidual = returned(found, x, weight, bias, residual, o)
    return dx if differentiated else x.new_empty(0), dweight, dbias, dresidual


def _rank_sum(numbers: Tensor, group: str, layer: str) -> Tensor:
    return _sum(numbers, FrameHeader("sums", layer, numbers.numel(), numbers.dtype), group)


# ----------------------------------------------------------------------------- their shapes, for fake tensors


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, mask: Maybe, statistics: Tensor, count: Tensor,
    residual: bool, differentiated: bool, group: str, layer: str, *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx, dweight, dbias, dresidual = backward_fake(
        dy, x, weight, bias, extra, mask, statistics, residual, *options
    )
    return dx if differentiated else x.new_empty(0), dweight, dbias, dresidual


def _rank_sum_fake(numbers: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(numbers)


for _name, _run, _fake in (
    ("synchronized", _forward, forward_fake),
    ("synchronized_backward", _backward, _backward_fake),
    ("rank_sum", _rank_sum, _rank_sum_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"xhat::{_name}", _fake, lib=_library)


# --------------------------------------------------------------------------------------------------- their gradients


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, mask, ctx.differentiated, ctx.group, ctx.layer, *options = inputs
    y, statistics, count = output
    ctx.options, ctx.residual = Options(*options), residual is not None
    extra = cpu.kept(residual, y, ctx.options)
    ctx.save_for_backward(x, weight, bias, extra, mask, statistics, count)


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    _refuse_transforms()
    x, weight, bias, extra, mask, statistics, count = ctx.saved_tensors
    o: Options = ctx.options
    if extra is not None and o.activation == "leaky_relu":
        extra = extra.detach()  # of y only the sign is asked: its own gradient would be one more exchange
    run = _operators.synchronized_backward if tracing() or torch.is_grad_enabled() else _backward
    found = run(
        dy, x, weight, bias, extra, mask, statistics, count, ctx.residual, ctx.differentiated, ctx.group, ctx.layer, *o
    )  # fmt: skip
    dx, *others = asked(found, dy, weight, bias, ctx.residual, o)
    return dx if ctx.differentiated else None, *others, *[None] * 8


def _keep_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, weight, bias, extra, mask, statistics, count, ctx.residual, ctx.differentiated, *rest = inputs
    ctx.group, ctx.layer, *options = rest
    ctx.options = Options(*options)
    ctx.save_for_backward(dy, x, weight, bias, extra, mask, statistics, count)


def _differentiate_second(ctx: Any, *cotangents: Maybe) -> tuple[Any, ...]:
    """By torch's operations and `rank_sum`: six exchanges, in the same order on all ranks."""
    dy, x, weight, bias, extra, mask, statistics, count = ctx.saved_tensors
    others = None
    if ctx.differentiated and count:
        total = partial(_operators.rank_sum, group=ctx.group, layer=ctx.layer)
        others, statistics = composed.Others(total, count, statistics[0]), None
    wanted = composed.second_gradients(
        cotangents, dy, x, weight, bias, extra, mask, statistics, ctx.residual, ctx.options, others
    )
    return *wanted, *[None] * 11


def _differentiate_sum(ctx: Any, dsum: Tensor) -> tuple[Tensor, None, None]:
    return _operators.rank_sum(dsum, ctx.group, ctx.layer), None, None


def _keep_where(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.group, ctx.layer = inputs


class Synchronized(torch.autograd.Function):
    """The operator for eager calls, which it takes less time to reach; its second derivative is the operators'."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As `_forward`."""
        output = _forward(*inputs)
        _keep(ctx, inputs, output)
        ctx.mark_non_differentiable(*output[1:])
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """As `_differentiate`."""
        return _differentiate(ctx, *gradients)


for _name, _gradient, _setup in (
    ("synchronized", _differentiate, _keep),
    ("synchronized_backward", _differentiate_second, _keep_second),
    ("rank_sum", _differentiate_sum, _keep_where),
):
    torch.library.register_autograd(f"xhat::{_name}", _gradient, setup_context=_setup, lib=_library)
