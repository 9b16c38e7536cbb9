"""Operators for a graph that is being recorded (compile, export, make_fx, fake tensors): opaque calls of the kernels.

    xhat::batch_norm            y, statistics, count
    xhat::batch_norm_backward   dx, dweight, dbias, dresidual

With a process group the batch is spread over its ranks: the first operator then merges the moments of all ranks, and
the second adds their gradient sums. The exchange itself is in `xhat.torch.sync`, which sets `across_ranks`.

On devices without kernels, graphs and operators consist of torch's own operations, which a compiler can fuse.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from xhat.plan import Options, saved_for_backward
from xhat.torch import composed, cpu, exported
from xhat.torch.cpu import Run
from xhat.torch.engines import engine_for, recorded_on
from xhat.torch.errors import TensorArgumentError
from xhat.torch.inputs import Batch, Inputs, check_gradient, check_inputs
from xhat.torch.internals import for_other_tools, on_a_device, tangents
from xhat.torch.memory import check_memory

__all__ = ["Where", "across_ranks", "backward", "batch_norm", "forward", "gradients_of", "save"]

Maybe = Tensor | None
Total = Callable[[Tensor], Tensor] | None

_library = torch.library.Library("xhat", "DEF")
_OPTIONS = "float eps, int correction, str? activation, float slope"
_WHERE = 'str? group=None, str layer="", bool differentiated=True'
_library.define(
    "batch_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, Tensor? mask, "
    f"{_OPTIONS}, {_WHERE}, str details='', int batches=-1) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "batch_norm_backward(Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? saved, Tensor? mask, "
    f"Tensor statistics, bool residual, {_OPTIONS}, Tensor? count=None, {_WHERE}) -> (Tensor, Tensor, Tensor, Tensor)"
)


class Where(NamedTuple):
    """Whose batch it is.

    group           name of the process group whose ranks share the batch; None: the batch is here
    layer           the layer's path, by which ranks know each other's layers
    differentiated  whether a gradient of x will be needed; ranks have to agree on it
    details         what else ranks have to agree on in the forward pass; batches: num_batches_tracked, -1 if unknown
    """

    group: str | None = None
    layer: str = ""
    differentiated: bool = True
    details: str = ""
    batches: int = -1


class Ranks(Protocol):
    """What a batch on many processes needs of the others."""

    def statistics(self, x: Tensor, mask: Maybe, o: Options, where: Where) -> tuple[Tensor, Tensor]:
        """Mean and var (2, C) of the batch of all ranks, and m."""

    def total(self, sums: Tensor, x: Tensor, statistics: Tensor, o: Options, where: Where) -> Tensor:
        """The sum over all ranks of the gradient sums (2, C) of a forward pass with these statistics."""

    def differentiable_total(self, sums: Tensor, where: Where) -> Tensor:
        """The same for a tensor of any shape, as a function with a gradient."""


across_ranks: list[Ranks] = []  # at most one


def batch_norm(t: Inputs, o: Options) -> tuple[Tensor, Batch | None]:
    """As `composed.batch_norm`, as the operator where that has kernels: with the batch's own statistics.

    An evaluation is recorded as elementwise operations, which a compiler fuses and every exporter supports.
    """
    if t.mean is not None and t.var is not None:
        return _evaluated(t, o), None
    if not recorded_on(t.x.device) or (t.mask is not None and t.mask.requires_grad):
        return composed.batch_norm(t, o)
    y, statistics, count = torch.ops.xhat.batch_norm(*t[:5], *o)
    return y, Batch(statistics.detach(), count.detach())


def _evaluated(t: Inputs, o: Options) -> Tensor:
    y = exported.evaluation(t, o) if for_other_tools() else None
    return y if y is not None else composed.batch_norm(t, o, dtype=torch.float32)[0]


# ------------------------------------------------------------------------------------------- bodies of the operators


def forward(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """y, statistics (2, C) and m."""
    t, o, where = Inputs(x, weight, bias, residual, mask, None, None), Options(*rest[:4]), Where(*rest[4:])
    if where.group is not None:
        return _forward_across_ranks(t, o, where)
    refuse_tangents(*t)
    check_inputs(t)
    if not x.numel():
        nothing = x.new_zeros((2, x.shape[1]), dtype=torch.float64)
        return torch.empty_like(x), nothing, nothing.new_zeros(())
    if (engine := engine_for(*t)) is None:
        return _forward_composed(x, weight, bias, residual, mask, *rest)
    run = engine.run_of(cpu.plan_for(t, *o.arguments), x, mask)
    y = engine.normalize(x, weight, bias, residual, run)
    return y, run.statistics, torch.full((), run.m, dtype=torch.float64, device=x.device)


def _forward_composed(
    x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, mask: Maybe, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y, batch = composed.batch_norm(Inputs(x, weight, bias, residual, mask, None, None), Options(*rest[:4]))
    return y, batch.statistics, torch.as_tensor(batch.count, dtype=torch.float64, device=x.device)


def _forward_across_ranks(t: Inputs, o: Options, where: Where) -> tuple[Tensor, Tensor, Tensor]:
    statistics, count = across_ranks[0].statistics(t.x, t.mask, o, where)
    mean, var = statistics.unbind(0)
    t = t._replace(mask=None, mean=mean, var=var)
    if (engine := engine_for(*t)) is not None:
        plan = cpu.plan_for(t, *o.arguments)
        return engine.normalize(*t[:4], Run(plan, statistics, plan.m, None, engine)), statistics, count
    return composed.batch_norm(t, o)[0], statistics, count


def backward(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, mask: Maybe, statistics: Tensor, residual: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dweight, dbias, dresidual; across ranks the parameters' are this rank's sums. Empty where there is none."""
    o, count, where = _rest(rest)
    t = Inputs(x, weight, bias, None, mask, None, None)
    if where.group is None:
        refuse_tangents(dy, x, weight, bias, saved, mask)
        check_inputs(t)
    if not x.numel():
        t = t._replace(mask=None)  # there is nothing to weigh
    if (engine := engine_for(dy, x, weight, bias, saved, t.mask, statistics)) is None:
        return _backward_composed(dy, x, weight, bias, saved, t.mask, statistics, residual, *rest)
    check_gradient(dy, x, saved, statistics, _separate(residual, o))
    check_memory(statistics)
    plan = cpu.plan_for(t._replace(residual=x if residual else None), *o.arguments, operation="moments")
    m = count if count is None or on_a_device(count) else float(count)
    run = engine.run_of(plan, x, t.mask) if m is None else engine.part_of(plan, m, t.mask)
    run = run._replace(statistics=statistics.contiguous())
    needs = (where.differentiated, weight is not None, bias is not None, _separate(residual, o))
    total = _total(x, statistics, o, count, where)
    return _returned(engine.gradients(dy, x, weight, bias, saved, run, needs, total), t, residual, o)


def _rest(rest: tuple[Any, ...]) -> tuple[Options, Maybe, Where]:
    """The arguments behind `residual`, of which those with a default may be missing."""
    return Options(*rest[:4]), rest[4] if len(rest) > 4 else None, Where(*rest[5:])


def _separate(residual: bool, o: Options) -> bool:
    """As `Plan.activated_residual`."""
    return residual and o.activation is not None


def _total(x: Tensor, statistics: Tensor, o: Options, count: Maybe, where: Where) -> Total:
    """The sum over the ranks that share the batch; None if the batch is here, or no rank needs dx."""
    if count is None or not where.differentiated or not (on_a_device(count) or count):
        return None
    return partial(across_ranks[0].total, x=x, statistics=statistics, o=o, where=where)


def _backward_composed(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, mask: Maybe, statistics: Tensor, residual: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o, count, where = _rest(rest)
    t, ranks = Inputs(x, weight, bias, None, mask, None, None), None
    if count is not None:
        total = _total(x, statistics, o, count, where)
        t = t._replace(mean=statistics[0], var=statistics[1])
        ranks = composed.AcrossRanks(total or (lambda sums: sums), count, statistics[0])
    dx, *others = composed.gradients(dy, t, saved, residual, o, ranks)
    return _returned((dx if where.differentiated else None, *others), t, residual, o)


def _returned(
    found: tuple[Maybe, ...], t: Inputs, residual: bool, o: Options
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four tensors, as the schema has them: empty where there is no such gradient."""
    like = (t.x, t.weight, t.bias, t.x if _separate(residual, o) else None)
    dx, dweight, dbias, dresidual = (
        t.x.new_empty(0) if a is None or d is None else d.to(a.dtype)
        for d, a in zip(found, like, strict=True)
    )
    return dx, dweight, dbias, dresidual


def refuse_tangents(*tensors: Maybe) -> None:
    """Raises TensorArgumentError for a tangent, which torch would drop without a word."""
    if tangents(*tensors):
        raise TensorArgumentError(
            "batch_norm: a recorded graph (compiled, exported or traced) has no forward-mode derivative. Differentiate "
            "the layer itself, or use torch.func.jvp, which this operator can follow."
        )


# --------------------------------------------------------------------------------- their shapes, for fake tensors


def _forward_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((2, x.shape[1]), dtype=torch.float64)
    return torch.empty_like(x), statistics, x.new_empty((), dtype=torch.float64)


def _backward_fake(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, mask: Maybe, statistics: Tensor, residual: bool,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    o, _, where = _rest(rest)
    dx, *new = (None if t is None else torch.empty_like(t) for t in (x, weight, bias, x))
    t = Inputs(x, weight, bias, None, None, None, None)
    return _returned((dx if where.differentiated else None, *new), t, residual, o)


# In a graph that runs inside of torch.func (grad, jvp, vmap, ...), the operators are torch's own operations.
for _name, _run, _transformed, _fake in (
    ("batch_norm", forward, _forward_composed, _forward_fake),
    ("batch_norm_backward", backward, _backward_composed, _backward_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    _library.impl(_name, _transformed, "FuncTorchDynamicLayerFrontMode")
    torch.library.register_fake(f"xhat::{_name}", _fake, lib=_library)


# --------------------------------------------------------------------------------------------------- their gradients


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Saves what the backward pass needs of `forward`."""
    x, weight, bias, residual, mask, *rest = inputs
    y, statistics, count = output
    if mask is not None and mask.requires_grad:
        raise TensorArgumentError(
            "batch_norm: a recorded graph has no gradient with respect to its mask. Detach it."
        )
    ctx.mark_non_differentiable(*output[1:])
    o = ctx.options = Options(*rest[:4])
    ctx.where, ctx.residual = Where(*rest[4:]), residual is not None
    saved = saved_for_backward(o.activation, y, residual)
    ctx.save_for_backward(
        x, weight, bias, saved, mask, statistics, None if ctx.where.group is None else count
    )


def gradients_of(ctx: Any, dy: Tensor, run: Callable[..., tuple[Tensor, ...]]) -> tuple[Any, ...]:
    """The gradients of all arguments of the operator; run: `backward`, or the operator."""
    x, weight, bias, saved, mask, statistics, count = ctx.saved_tensors
    o, where = ctx.options, ctx.where
    across = () if where.group is None else (count, *where[:3])
    if across and saved is not None and o.activation == "leaky_relu":
        saved = saved.detach()  # only the sign of y is needed: its own gradient would be one more exchange
    found = run(dy, x, weight, bias, saved, mask, statistics, ctx.residual, *o, *across)
    dx, dweight, dbias, dresidual = found
    return (dx if where.differentiated else None, None if weight is None else dweight, None if bias is None else dbias,
            dresidual if _separate(ctx.residual, o) else dy if ctx.residual else None, *[None] * 10)  # fmt: skip


def _differentiate(ctx: Any, dy: Tensor, *_: Any) -> tuple[Any, ...]:
    return gradients_of(ctx, dy, torch.ops.xhat.batch_norm_backward)


def _save_for_second(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    dy, x, weight, bias, saved, mask, statistics, ctx.residual, *rest = inputs
    ctx.options, count, ctx.where = _rest(tuple(rest))
    ctx.save_for_backward(dy, x, weight, bias, saved, mask, statistics, count)


def _differentiate_second(ctx: Any, *cotangents: Maybe) -> tuple[Any, ...]:
    """By torch's operations; across ranks with six exchanges, in the same order on all of them."""
    dy, x, weight, bias, saved, mask, statistics, count = ctx.saved_tensors
    where, ranks, given = ctx.where, None, (None, None)
    if where.group is not None and where.differentiated and count:
        total = partial(across_ranks[0].differentiable_total, where=where)
        ranks = composed.AcrossRanks(total, count, statistics[0])
    elif where.group is not None:
        given = statistics.unbind(0)
    t = Inputs(x, weight, bias, None, mask, *given)
    wanted = composed.second_gradients(cotangents, dy, t, saved, ctx.residual, ctx.options, ranks)
    return *wanted, *[None] * 11


torch.library.register_autograd("xhat::batch_norm", _differentiate, setup_context=save, lib=_library)
torch.library.register_autograd(
    "xhat::batch_norm_backward", _differentiate_second, setup_context=_save_for_second, lib=_library
)
