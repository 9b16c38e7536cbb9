"""One batch on many processes: its moments are exchanged and merged, and so are the sums of its gradient.

    forward    moments -> [exchange] -> merge -> normalize
    backward   gradient_sums -> [exchange] -> sum -> input_gradient

The operators are those of a batch on one process (`xhat.torch.operators`), which call `Exchanged` where there is a
group. In eager mode `AcrossRanks` runs the same functions. One more operator, xhat::rank_sum, is the sum over ranks,
which is its own adjoint. The kernels are run in `cpu`, and the formulas are in `xhat.equations`.
"""

import json
import zlib
from contextlib import nullcontext
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from xhat import equations
from xhat.checks import check_count
from xhat.errors import ArgumentError
from xhat.plan import Options, check_options
from xhat.torch import composed, operators
from xhat.torch.engines import engine_for
from xhat.torch.inputs import Batch, Inputs, check_inputs
from xhat.torch.internals import differentiating_forward, on_a_device, recomputing, tracing, transforming
from xhat.torch.operators import Where
from xhat.torch.sync import frames
from xhat.torch.sync.frames import Array, FrameHeader
from xhat.torch.sync.header import AFFINE
from xhat.torch.sync.merge import added, merged

__all__ = ["Exchange", "details", "exchange", "merged_row", "normalized"]

Maybe = Tensor | None


def normalized(
    t: Inputs, eps: Any, correction: Any, activation: Any, where: Where
) -> tuple[Tensor, Batch | None]:
    """y by the statistics of the batch of all ranks, which come with it (unless it is empty)."""
    graph, gradient = tracing(), torch.is_grad_enabled()
    o = check_options("batch_norm", eps, correction, activation)
    _check(t)
    where = where._replace(differentiated=gradient and t.x.requires_grad)
    run = torch.ops.xhat.batch_norm if graph else AcrossRanks.apply if gradient else operators.forward
    y, statistics, count = run(*t[:5], *o, *where)
    if graph:
        return y, Batch(statistics.detach(), count.detach())
    if on_a_device(count):
        return y, Batch(statistics.detach(), count)
    m = float(count)
    return y, Batch(statistics.detach(), m) if m else None


@lru_cache(maxsize=4096)
def details(
    number: int,
    momentum: float | None,
    running_correction: int,
    nonfinite: str,
    statistics: torch.dtype | None,
    weight: bool,
    bias: bool,
    frozen_affine: bool,
) -> str:
    """`Where.details`, fields of `FrameHeader`, as text, which an operator can take."""
    dtype = None if statistics is None else str(statistics).removeprefix("torch.")
    affine = AFFINE[weight + 2 * bias]
    return json.dumps([number, momentum, running_correction, nonfinite, dtype, affine, frozen_affine])


@lru_cache(maxsize=4096)
def _header(
    layer: str,
    channels: int,
    dtype: torch.dtype,
    differentiated: bool,
    o: Options,
    recomputed: bool,
    details: str,
) -> FrameHeader:
    """The header of a forward pass."""
    header = FrameHeader("statistics", layer, channels, dtype, differentiated, *o, recomputed)
    if not details:
        return header
    number, momentum, running_correction, nonfinite, statistics, affine, frozen_affine = json.loads(details)
    return header._replace(
        number=number,
        momentum=momentum,
        running_correction=running_correction,
        nonfinite=nonfinite,
        statistics=statistics and getattr(torch, statistics),
        affine=affine,
        frozen_affine=frozen_affine,
    )


def _check(t: Inputs) -> None:
    _refuse_transforms()
    check_inputs(t, operation="moments")  # a part of a batch may be a single value, or empty
    if t.mask is not None and t.mask.requires_grad and torch.is_grad_enabled():
        raise ArgumentError(
            "batch_norm: mask requires a gradient, which a batch on many processes has none for. Detach it."
        )


def _refuse_transforms() -> None:
    if transforming() or differentiating_forward():
        raise ArgumentError(
            "batch_norm: torch.func and forward-mode gradients do not reach other processes. Use backward(), "
            "or a layer without a process group."
        )


class AcrossRanks(torch.autograd.Function):
    """The operator in eager mode, where a Function takes less time; its second derivative is the operators'."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As `operators.forward`."""
        output = operators.forward(*inputs)
        operators.save(ctx, inputs, output)
        count = output[2]
        ctx.exchanges = on_a_device(count) or bool(count)  # unless the batch is empty on all ranks
        return output

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
        """As `operators.gradients_of`."""
        where = ctx.where
        header = FrameHeader("gradient sums", where.layer, 0)
        exchanges = where.differentiated and ctx.exchanges
        with frames.announce_failure(header, where.group) if exchanges else nullcontext():
            _refuse_transforms()
            graph = tracing() or torch.is_grad_enabled()
            return operators.gradients_of(
                ctx, dy, torch.ops.xhat.batch_norm_backward if graph else operators.backward
            )


# ------------------------------------------------------------------------------------- what the operators exchange


class Exchanged:
    """`operators.Ranks` over a process group."""

    def statistics(self, x: Tensor, mask: Maybe, o: Options, where: Where) -> tuple[Tensor, Tensor]:
        """Mean and var (2, C) of the batch of all ranks, and m. Raises DegenerateBatchError without a variance."""
        channels = x.shape[1]
        header = _header(
            where.layer, channels, x.dtype, where.differentiated, o, recomputing(), where.details
        )
        group = where.group or ""
        if _on_device(x, where):
            with frames.announce_failure(header, group):
                sent = _row(x, mask)
            return _merged_on_device(frames.gather_on_device(sent, header, group), o)
        with frames.announce_failure(header, group):
            mine = _moments(x, mask)
        row = merged_row(_gather(mine, header, where))
        m, (values, everything) = row[0], row[1:3].astype(int)
        mean, m2 = row[3:].reshape(2, channels)
        if everything:
            check_count(
                m, values, o.correction, "batch_norm", (everything, channels), masked=values < everything
            )
            var = equations.variance(m2, m, o.correction)
        else:  # the batch is empty on all ranks, and any statistics will do
            var = m2 + 1
        statistics = torch.from_numpy(np.stack((mean, var))).to(x.device)
        return statistics, torch.full((), m, dtype=torch.float64, device=x.device)

    def total(self, sums: Tensor, x: Tensor, statistics: Tensor, o: Options, where: Where) -> Tensor:
        """The sum over all ranks of the gradient sums."""
        header = FrameHeader("gradient sums", where.layer, x.shape[1], x.dtype, True, *o)
        if not _on_device(x, where):
            header = header._replace(forward=_checksum(statistics))
        return _sum(sums, header, where)

    def differentiable_total(self, sums: Tensor, where: Where) -> Tensor:
        """The same as an operator."""
        total: Tensor = torch.ops.xhat.rank_sum(sums, where.group, where.layer)
        return total


operators.across_ranks[:] = [Exchanged()]


class Exchange(Protocol):
    """What takes the place of the exchange between ranks: the values of each part of the batch, as (parts, k)."""

    def gather(self, values: Array, header: FrameHeader, where: Where) -> Array:
        """The values of all parts."""


exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)  # None: the one between ranks


def _gather(values: Array, header: FrameHeader, where: Where) -> Array:
    other = exchange.get()
    if other is not None:
        return other.gather(values, header, where)
    return frames.gather(values, header, where.group or "", where.batches)


def _moments(x: Tensor, mask: Maybe) -> Array:
    """Of this rank: m, how many values have a weight, how many there are at all; then means and m2."""
    count, values, moments = (engine_for(x, mask) or composed).moments(x, mask)
    return np.concatenate(((count, values, x.numel() // x.shape[1]), moments.flatten().cpu().numpy()))


def _on_device(x: Tensor, where: Where) -> bool:
    """Whether this layer's exchanges stay on the device of x."""
    return exchange.get() is None and frames.takes(x.device, where.group or "")


def _row(x: Tensor, mask: Maybe) -> Tensor:
    """m of this rank, its means and its m2, in one tensor that the host does not read."""
    m, found = (engine_for(x, mask) or composed).unread_moments(x, mask)
    m = m.double().reshape(1) if isinstance(m, Tensor) else found.new_full((1,), m)
    return torch.cat((m, found.flatten()))


def _merged_on_device(rows: Tensor, o: Options) -> tuple[Tensor, Tensor]:
    """Mean and var (2, C) of such rows of all ranks, and m: the ranks' means are values that weigh m."""
    channels = rows.shape[1] // 2
    m, mean, m2 = rows.split((1, channels, channels), 1)
    count = m.sum()
    has_variance = (count == 0) | ((count > o.correction) & (count != 1))
    torch._assert_async(has_variance, "batch_norm: the batch of all ranks has no variance: it has one value per "
                        "channel, or weights whose sum is at most the correction.")  # fmt: skip
    mu, between = equations.moments(mean, lambda v: v.sum(0), count, m)
    total = m2.sum(0) + between
    total = total + 0 * total  # NaN where a square overflows, as in `merge`
    var = equations.variance(total, count, o.correction)
    return torch.where(count > 0, torch.stack((mu, var)), 1.0), count  # of nothing, any statistics will do


def merged_row(rows: Array) -> Array:
    """Such moments of many parts made one."""
    (m,), mean, m2 = merged(rows[:, :1], *np.split(rows[:, 3:], 2, axis=1))
    return np.concatenate(((m, *added(rows[:, 1:3])), mean, m2))


def _checksum(statistics: Tensor) -> int:
    """By which ranks compare which forward pass they differentiate: its statistics have the same bits on all ranks.

    0 where they are not finite, since the bits of a NaN may differ between processors.
    """
    values = statistics.detach().cpu().numpy()
    return zlib.crc32(values.tobytes()) if np.isfinite(values).all() else 0


def _sum(sums: Tensor, header: FrameHeader, where: Where) -> Tensor:
    """The sum over all ranks, in this shape."""
    if _on_device(sums, where):
        flat = sums.detach().double().flatten()
        total = frames.gather_on_device(flat, header, where.group or "").sum(0)
        return total.to(sums.dtype).reshape(sums.shape)
    ranks = _gather(sums.detach().flatten().cpu().numpy(), header, where)
    return torch.from_numpy(added(ranks)).to(sums.device).reshape(sums.shape)


def _rank_sum(numbers: Tensor, group: str, layer: str) -> Tensor:
    return _sum(numbers, FrameHeader("sums", layer, numbers.numel(), numbers.dtype), Where(group, layer))


def _rank_sum_gradient(ctx: Any, dsum: Tensor) -> tuple[Tensor, None, None]:
    return torch.ops.xhat.rank_sum(dsum, *ctx.where), None, None


def _save_where(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.where = inputs[1:]


_library = torch.library.Library("xhat", "FRAGMENT")
_library.define("rank_sum(Tensor numbers, str group, str layer) -> Tensor")
_library.impl("rank_sum", _rank_sum, "CompositeExplicitAutograd")
torch.library.register_fake("xhat::rank_sum", lambda numbers, *_: torch.empty_like(numbers), lib=_library)
torch.library.register_autograd("xhat::rank_sum", _rank_sum_gradient, setup_context=_save_where, lib=_library)
