"""A forward and a backward pass on a GPU without autograd, as `xhat.torch.cpu` runs them on a CPU.

    forward    sums of splits -> merge, and the factors of the map -> map
    backward   sums of splits -> merge, and the factors of the map -> map

or one launch where a channel fits into registers (`tiles.Tiles.whole`). The host waits for a mask, whose weights are
summed and checked, and for nothing else.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xhat.checks import check_count, check_sum
from xhat.plan import Plan
from xhat.torch.cpu import FLOAT64, Run, plan_for
from xhat.torch.gpu import maps, merge, sums, whole
from xhat.torch.gpu.formulas import FROM_RESIDUAL, FROM_X, FROM_Y, LEAKY_RELU, NO_ACTIVATION, SILU
from xhat.torch.gpu.launch import launch, launch_all
from xhat.torch.gpu.operands import Moved, Operands, vector, wide
from xhat.torch.inputs import Inputs, Moving, check_mask, weights_in_order
from xhat.torch.internals import ordinary

__all__ = [
    "ENGINE",
    "NAME",
    "gradient_sums",
    "gradients",
    "input_gradient",
    "moments",
    "normalize",
    "part_of",
    "pre_of",
    "run_of",
    "takes",
    "track",
    "unread_moments",
]

Maybe = Tensor | None
_ACTIVATIONS = {None: NO_ACTIVATION.value, "leaky_relu": LEAKY_RELU.value, "silu": SILU.value}
NAME = "triton"  # see engines.engine_of
ENGINE = sys.modules[__name__]
_CHANNELS = 32  # of a program that merges
_PARTS = 8  # that it reads at once


def takes(*tensors: Maybe) -> bool:
    """Whether these are ordinary tensors on one device, the one that forward passes ran on."""
    found = [t for t in tensors if t is not None]
    return all(ordinary(t) and t.device == found[0].device for t in found)


def _source(plan: Plan) -> Any:
    """How the backward pass finds pre: see `plan.saved_for_backward`."""
    if not plan.activated_residual:
        return FROM_X.value
    return FROM_Y.value if plan.options.activation == "leaky_relu" else FROM_RESIDUAL.value


def _grid(p: Operands) -> tuple[int, ...]:
    return -(-p.tiles.elements // p.tiles.map_rows) * p.blocks, 1, 1


def run_of(plan: Plan, x: Tensor, mask: Maybe) -> Run:
    """As `cpu.run_of`: a pass by the batch's own statistics. A mask makes the host wait for the sum of its weights."""
    statistics = x.new_empty((2, plan.view.shape[1]), dtype=torch.float64)
    if mask is None:
        return Run(plan, statistics, plan.m, None, ENGINE)
    check_mask(x, mask)
    weights = weights_in_order(mask, plan)
    count, values = check_sum(float(weights.sum()), "batch_norm"), int(torch.count_nonzero(weights))
    check_count(count, values, plan.options.correction, "batch_norm", x.shape, masked=True)
    return Run(plan, statistics, count, weights, ENGINE)


def part_of(plan: Plan, count: Any, mask: Maybe) -> Run:
    """As `cpu.part_of`: a pass over one rank's part of a batch of this count in all."""
    weights = None if mask is None else weights_in_order(mask, plan)
    return Run(plan, FLOAT64, count, weights, ENGINE)


# ------------------------------------------------------------------------------------------------------- forward


def normalize(x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, run: Run, given: Any = None) -> Tensor:
    """As `cpu.normalize`: y; writes run.statistics first where they are the batch's own."""
    plan, statistics, m, weights = run[:4]
    if not x.numel():
        return torch.empty_like(x)
    p = Operands(plan, x=x, residual=residual)
    mean, var = statistics if given is None else (t.contiguous() for t in given)
    weight, bias = vector(weight), vector(bias)
    y = p.written("y", p.result())
    eps, correction, activation, slope = plan.options
    kind = dict(ACTIVATION=_ACTIVATIONS[activation], SLOPE=slope, RESIDUAL=residual is not None)
    affine = dict(GAMMA=weight is not None, BETA=bias is not None)
    gamma, beta = (p.first if t is None else t for t in (weight, bias))
    moved = Moved(run.moving, statistics)
    if p.tiles.whole and run.batch and weights is None:
        launch(whole.forward, (p.blocks,), (p["x"], p["residual"], y, mean, var, gamma, beta, *moved.tensors, *p.sizes,
               *p.at("x", "residual", "y"), p.inner, float(correction), eps, *moved.numbers),
               p.constants(p.tiles.rows, **kind, **affine, MOVED=moved.how))  # fmt: skip
        moved.count()
        return y
    terms = statistics.new_empty((4, p.channels), dtype=wide(x))
    parts = _sum_moments(p, weights) if run.batch else terms
    launch_all(  # compiled together, since the first of them moves running statistics
        (merge.merge_moments, (-(-p.channels // _CHANNELS),), (parts, mean, var, terms, gamma, beta, *moved.tensors,
         p.channels, p.tiles.splits, m if run.batch else 1.0, float(correction), eps, *moved.numbers),
         dict(STEP=_PARTS, COLUMNS=_CHANNELS, GIVEN=not run.batch, **affine, MOVED=moved.how)),
        (maps.normalize, _grid(p), (p["x"], p["residual"], y, terms, *p.sizes, *p.at("x", "residual", "y"), p.inner,
         p.blocks), p.constants(p.tiles.map_rows, **kind)),
    )  # fmt: skip
    moved.count()
    return y


def _sum_moments(p: Operands, weights: Maybe) -> Tensor:
    """Moments of each split."""
    parts = p.first.new_empty((p.tiles.splits, 3, p.channels), dtype=torch.float64)
    terms = p.terms if weights is None else 1
    launch(sums.moments, (p.blocks, p.tiles.splits), (p["x"], p.first if weights is None else weights, parts,
           *p.sizes, *p.at("x"), p.inner, p.per),
           p.constants(p.tiles.rows, TERMS=terms, WEIGHTED=weights is not None))  # fmt: skip
    return parts


def moments(x: Tensor, mask: Maybe) -> tuple[float, int, Tensor]:
    """As `cpu.moments`: m, the number of values that have a weight, and mean and m2 (2, C) in float64."""
    count, found = unread_moments(x, mask)
    if mask is None:
        return count, x.numel() // x.shape[1], found
    values = x.numel() // x.shape[1] // mask.numel() * int(torch.count_nonzero(mask)) if mask.numel() else 0
    return float(count), values, found


def unread_moments(x: Tensor, mask: Maybe) -> tuple[Any, Tensor]:
    """m, a number or a scalar, and mean and m2 (2, C); the host waits for the check of real weights alone."""
    plan = plan_for(Inputs(x, None, None, None, mask, None, None), 1.0, 0, None, operation="moments")
    found = x.new_zeros((2, x.shape[1]), dtype=torch.float64)
    weights = None if mask is None else weights_in_order(mask, plan)
    if x.numel():
        p = Operands(plan, x=x)
        terms = found.new_empty((4, p.channels))
        none = Moved(None, terms)
        launch(merge.merge_moments, (-(-p.channels // _CHANNELS),), (_sum_moments(p, weights), *found, terms, terms,
               terms, *none.tensors, p.channels, p.tiles.splits, 1.0, 0.0, 1.0, *none.numbers),
               dict(STEP=_PARTS, COLUMNS=_CHANNELS, GIVEN=False, GAMMA=False, BETA=False, MOVED=none.how))  # fmt: skip
    return float(x.numel() // x.shape[1]) if weights is None else weights.sum(), found


def pre_of(x: Tensor, weight: Maybe, bias: Maybe, run: Run) -> Tensor:
    """As `cpu.pre_of`: pre without a residual, by the operations of the forward pass that ran."""
    plan = run.plan.linear()
    if x.dtype is torch.float16:  # which has no room for a small pre
        x = x.float()
        plan = plan_for(
            Inputs(x, weight, bias, None, None, *run.statistics.unbind(0)), *plan.options.arguments
        )
    return normalize(x, weight, bias, None, Run(plan, run.statistics, math.inf, None, ENGINE))


def track(moving: Moving, statistics: Tensor) -> None:
    """As `cpu.track`, for statistics that no pass of this engine has found."""
    moved = Moved(moving, statistics)
    channels = statistics.shape[1]
    counted = isinstance(moving.m, Tensor)
    launch(merge.track, (-(-channels // _CHANNELS),), (*moved.tensors, *statistics, moving.m if counted else statistics,
           channels, *moved.numbers, float(moving.correction), float(moving.running_correction)),
           dict(COLUMNS=_CHANNELS, MOVED=moved.how, COUNTED=counted))  # fmt: skip
    moved.count()


# ------------------------------------------------------------------------------------------------------ backward


def gradients(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, run: Run, needs: tuple[bool, ...],
    total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Maybe, Maybe, Maybe, Maybe]:  # fmt: skip
    """As `cpu.gradients`: dx, dweight, dbias, dresidual, of those that are needed; the others are None."""
    need_x, need_weight, need_bias, need_residual = needs
    p = Operands(run.plan, x=x, dy=dy, saved=saved)
    dx = p.result()
    activated = run.plan.activated_residual  # dresidual = dy act'(pre) is written together with dx
    dresidual = p.result() if activated else dx
    dweight, dbias = (_sum_for(t, need, x) for t, need in ((weight, need_weight), (bias, need_bias)))
    if total is None and x.numel() and p.tiles.whole and run.batch and run.weights is None:
        _whole_backward(p, run, weight, bias, (dx, dresidual, dweight, dbias))
    else:
        b = Backward(p, run, weight, bias)
        own = x.new_empty((2, p.channels), dtype=torch.float64) if total is not None else None
        through = b.reduce(*((dweight, dbias) if own is None else (own[1], own[0])))
        if own is not None:
            dbias, dweight = own
            through = b.through(total(own))  # type: ignore[misc]
        b.map(through, dx, dresidual if activated else None)
    if need_residual and not activated:
        dresidual = dy
    return (dx if need_x else None, dweight if need_weight else None, dbias if need_bias else None,
            dresidual if need_residual else None)  # fmt: skip


def _sum_for(parameter: Maybe, needed: bool, x: Tensor) -> Tensor:
    """Where a parameter's gradient goes; in float64 where it is not needed."""
    like = parameter if parameter is not None and needed else None
    return x.new_empty(x.shape[1], dtype=torch.float64 if like is None else like.dtype)


def gradient_sums(dy: Tensor, x: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """sum(dy) and sum(dy xhat) in float64, without weights."""
    run = run.linear()._replace(weights=None)
    sum_dy, sum_dy_xhat = x.new_empty((2, x.shape[1]), dtype=torch.float64)
    Backward(Operands(run.plan, x=x, dy=dy), run, None, None).reduce(sum_dy_xhat, sum_dy)
    return sum_dy, sum_dy_xhat


def input_gradient(
    dy: Tensor, x: Tensor, gamma: Tensor, sum_dy: Tensor, sum_dy_xhat: Tensor, run: Run, *, weighted: bool
) -> Tensor:
    """gamma rstd (dy - w sum_dy / m - w xhat sum_dy_xhat / (m - c)), with these sums."""
    run = run.linear() if weighted else run.linear()._replace(weights=None)
    p = Operands(run.plan, x=x, dy=dy)
    dx = p.result()
    b = Backward(p, run, gamma, None)
    b.map(b.through(torch.stack((sum_dy, sum_dy_xhat))), dx, None)
    return dx


class Backward:
    """The launches of a backward pass: `reduce` or `through`, which make the factors of the map, then `map`."""

    def __init__(self, p: Operands, run: Run, weight: Maybe, bias: Maybe) -> None:
        self.p, self.run, self.statistics = p, run, (run.statistics[0], run.statistics[1])
        self.affine = dict(GAMMA=weight is not None, BETA=bias is not None)
        self.parameters = tuple(p.first if t is None else t for t in (vector(weight), vector(bias)))
        self.weights = p.first if run.weights is None else run.weights
        o = run.plan.options
        self.kind = dict(ACTIVATION=_ACTIVATIONS[o.activation], SLOPE=o.slope, SOURCE=_source(run.plan),
                         WEIGHTED=run.weights is not None)  # fmt: skip

    def reduce(self, dweight: Tensor, dbias: Tensor) -> Tensor:
        """Writes both sums, and returns the factors of the map."""
        p, t = self.p, self.p.tiles
        parts = p.first.new_empty((t.splits, 2, p.channels), dtype=torch.float64)
        if not t.elements:  # a rank may have no part of the batch
            return self._factors(parts.zero_(), parts, dweight, dbias, given=False)
        launch(sums.gradient_sums, (p.blocks, t.splits), (p["dy"], p["x"], p["saved"], self.weights, parts,
               *self.statistics, *self.parameters, *p.sizes, *p.at("dy", "x", "saved"), p.inner, p.per,
               self.run.plan.options.eps),
               p.constants(t.rows, TERMS=p.terms if self.run.weights is None else 1, **self.kind,
                           **self.affine))  # fmt: skip
        return self._factors(parts, parts, dweight, dbias, given=False)

    def through(self, both: Tensor) -> Tensor:
        """The factors of the map for these sums of dy and dy xhat (2, C)."""
        both, m = both.double().contiguous(), self.run.m
        if isinstance(m, Tensor):  # of many ranks: divided here, the sums count as those of a batch of 1
            both = both / torch.stack((m, m - self.run.plan.options.correction)).unsqueeze(1)
        return self._factors(both, both, both, both, given=True)

    def _factors(self, parts: Tensor, sums: Tensor, dweight: Tensor, dbias: Tensor, *, given: bool) -> Tensor:
        p, run, o = self.p, self.run, self.run.plan.options
        m, correction = (
            (1.0, 0.0) if isinstance(run.m, Tensor) or not run.batch else (run.m, float(o.correction))
        )
        factors = parts.new_empty((7, p.channels), dtype=wide(p.first))
        launch(merge.merge_gradient_sums, (-(-p.channels // _CHANNELS),), (parts, sums, *self.statistics, factors,
               *self.parameters, dweight, dbias, p.channels, p.tiles.splits, m, correction, o.eps),
               dict(STEP=_PARTS, COLUMNS=_CHANNELS, GIVEN=given, BATCH=run.batch, **self.affine))  # fmt: skip
        return factors

    def map(self, factors: Tensor, dx: Tensor, dresidual: Maybe) -> None:
        """Writes dx, and dresidual if it is given."""
        p, t = self.p, self.p.tiles
        if not t.elements:
            return
        launch(maps.input_gradient, _grid(p), (p["dy"], p["x"], p["saved"], self.weights, p.written("dx", dx),
               dx if dresidual is None else dresidual, factors, *p.sizes,
               *p.at("dy", "x", "saved", "dx"), p.inner, p.blocks),
               p.constants(t.map_rows, **self.kind, DRESIDUAL=dresidual is not None))  # fmt: skip


def _whole_backward(p: Operands, run: Run, weight: Maybe, bias: Maybe, results: tuple[Tensor, ...]) -> None:
    dx, dresidual, dweight, dbias = results
    p.written("dx", dx)
    weight, bias = vector(weight), vector(bias)
    gamma, beta = (p.first if t is None else t for t in (weight, bias))
    eps, correction, activation, slope = run.plan.options
    launch(whole.backward, (p.blocks,), (p["dy"], p["x"], p["saved"], dx, dresidual, *run.statistics, gamma, beta,
           dweight, dbias, *p.sizes, *p.at("dy", "x", "saved", "dx"), p.inner, float(correction), eps),
           p.constants(p.tiles.rows, ACTIVATION=_ACTIVATIONS[activation], SLOPE=slope, SOURCE=_source(run.plan),
                       DRESIDUAL=run.plan.activated_residual, GAMMA=weight is not None,
                       BETA=bias is not None))  # fmt: skip
