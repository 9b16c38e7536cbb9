"""Plain CPU tensors to the kernels, by address: the forward and the backward pass without autograd.

Nothing is checked here (see `functional`, and the kernels for memory), and no formula stands here (see `equations`).
"""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.checks import check_count, check_sum
from xhat.layout import Strides, strides_on
from xhat.ops import run_backward, run_forward, run_track
from xhat.plan import Plan, find_plan
from xhat.torch.inputs import CODES, Inputs, Moving, as_mask, check_kinds, check_mask, weights_in_order
from xhat.torch.internals import plain
from xhat.torch.memory import LARGE, ask_for_huge_pages, check_memory, within_memory

__all__ = [
    "FLOAT64",
    "NAME",
    "Run",
    "backward",
    "gradient_sums",
    "gradients",
    "input_gradient",
    "moments",
    "normalize",
    "part_of",
    "plan_for",
    "run_of",
    "takes",
    "track",
]

NAME = "kernels"  # see engines.engine_of
takes = plain  # the tensors that this engine computes

# `new_empty` of this tensor takes half the time of torch.empty.
FLOAT64 = torch.empty(0, dtype=torch.float64, device="cpu")

Memory = Tensor | tuple[int, int]  # a tensor, or the address and bytes of what was allocated here
Operand = tuple[Memory, Strides]  # with strides on the view
Vector = tuple[Tensor, int]  # with the code of its dtype


class Run(NamedTuple):
    """One forward pass: its plan, and what the backward pass needs of it besides tensors of x's size and parameters.

    statistics    mean and var (2, C) in float64: the batch's, which `normalize` writes, or given ones
    m             the sum of weights; infinite for given statistics; on a device, a scalar for many ranks' batch
    weights       a copy of the mask's elements in the order in which the kernels read them; None: all are 1
    engine        the module whose kernels run it: this one, or gpu.passes
    moving        what a forward pass moves besides, where its engine can
    """

    plan: Plan
    statistics: Tensor
    m: Any
    weights: Tensor | None = None
    engine: Any = sys.modules[__name__]
    moving: Moving | None = None

    def linear(self) -> "Run":
        """The same pass without the activation."""
        return self._replace(plan=self.plan.linear())

    def mask(self) -> Tensor | None:
        """The weights in the order of x's dimensions, of size 1 along the channels."""
        return None if self.weights is None else as_mask(self.weights, self.plan)

    @property
    def batch(self) -> bool:
        """Whether the statistics are the batch's own, so that dx has terms through them."""
        return isinstance(self.m, Tensor) or self.m != math.inf


def plan_for(t: Inputs, *options: Any, operation: str = "batch_norm") -> Plan:
    """The plan of a call with these tensors, and options eps, correction, activation. Raises where they do not fit.

    operation: "moments" for a part of a batch, which needs no variance.
    """
    x, weight, bias, residual, mask, mean, var = t
    kinds = (mean if mean is None else (mean.shape, mean.dtype), var if var is None else (var.shape, var.dtype),
             weight if weight is None else (weight.shape, weight.dtype),
             bias if bias is None else (bias.shape, bias.dtype),
             residual if residual is None else (residual.shape, residual.dtype))  # fmt: skip
    key = (check_kinds, operation, x.shape, x.dtype, x.stride(), 1, kinds, mask is not None, 1, *options)
    return find_plan(*key)


def run_of(plan: Plan, x: Tensor, mask: Tensor | None) -> Run:
    """A pass by the batch's own statistics, which are still to be found. Raises where the mask leaves no variance."""
    statistics = FLOAT64.new_empty(2, plan.view.shape[1])
    if mask is None:
        return Run(plan, statistics, plan.m)
    check_mask(x, mask)
    weights = weights_in_order(mask, plan)
    count, values = check_sum(float(weights.sum()), "batch_norm"), int(torch.count_nonzero(weights))
    check_count(count, values, plan.options.correction, "batch_norm", x.shape, masked=True)
    return Run(plan, statistics, count, weights)


def part_of(plan: Plan, count: float, mask: Tensor | None) -> Run:
    """A pass over one rank's part of a batch of this count in all; its statistics are still to be set."""
    return Run(plan, FLOAT64, count, None if mask is None else weights_in_order(mask, plan))


# ------------------------------------------------------------------------------------------------------ operands


def _result_like(x: Tensor, plan: Plan) -> tuple[Tensor, Operand]:
    """A result of x's shape and dtype, with x's strides where the view walks them."""
    new = torch.empty_like(x)
    size = new.nbytes
    if size >= LARGE:
        ask_for_huge_pages(new.data_ptr(), size)
    strides = plan.strides if new.stride() == plan.memory else strides_on(plan.view, new.shape, new.stride())
    if strides is None:
        view = plan.view
        walked = view.outer + view.channel + view.inner
        order = tuple(a for a in range(x.dim()) if a not in walked) + walked
        new = torch.empty_permuted(x.shape, order, dtype=x.dtype, device="cpu")
        strides = strides_on(view, new.shape, new.stride()) if new.numel() else (0, 0, 0)
        assert strides is not None
    return new, ((new.data_ptr(), size), strides)


def _read(t: Tensor, plan: Plan) -> Operand:
    """An input, or a copy where the view does not walk it."""
    strides = plan.strides if t.stride() == plan.memory else strides_on(plan.view, t.shape, t.stride())
    if strides is not None:
        return t, strides
    check_memory(t)
    copy, (_, strides) = _result_like(t, plan)
    return copy.copy_(t), strides


def _vector(vector: Tensor) -> Vector:
    """An element per channel, or a copy where they are not contiguous."""
    if not vector.is_contiguous():
        check_memory(vector)
        vector = vector.contiguous()
    return vector, CODES[vector.dtype]


# ------------------------------------------------------------------------------------------------------- forward


def moments(x: Tensor, mask: Tensor | None) -> tuple[float, int, Tensor]:
    """m, the number of values that have a weight, and mean and m2 (2, C) in float64; zeros where there are none."""
    plan = plan_for(Inputs(x, None, None, None, mask, None, None), 1.0, 0, None, operation="moments")
    found = torch.zeros((2, x.shape[1]), dtype=torch.float64, device="cpu")
    values, weights = x.numel() // x.shape[1], None
    count = float(values)
    if mask is not None:
        weights = weights_in_order(mask, plan)
        count, values = float(weights.sum()), int(torch.count_nonzero(weights))
    if count:
        mean, var = ((row.data_ptr(), row.nbytes) for row in found)
        run_forward(True, False, plan.dtype, plan.view.shape, _read(x, plan), weights, None, None, None, None,
                    mean, var, 1.0, 1.0, 0, 0.0)  # fmt: skip
    return count, values, found


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, run: Run,
    given: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """y = act(weight xhat + bias [+ residual]); writes run.statistics first where they are the batch's own.

    given: mean and var of any dtype in place of run.statistics, if no gradient will be needed.
    """
    plan, statistics, m, weights = run[:4]
    y, result = _result_like(x, plan)
    eps, correction, _, slope = plan.options
    batch = m != math.inf
    address, size = statistics.data_ptr(), statistics.nbytes // 2  # of a row: mean, var
    mean, var = ((address, size), (address + size, size)) if given is None else map(_vector, given)
    try:
        run_forward(batch, True, plan.dtype, plan.view.shape, _read(x, plan), weights,
                    weight if weight is None else _vector(weight), bias if bias is None else _vector(bias),
                    residual if residual is None else _read(residual, plan), result, mean, var,
                    m - correction if batch else 1.0, eps, plan.activation, slope)  # fmt: skip
    except IndexError as error:
        x, weight, bias, residual, *pair = within_memory(error, x, weight, bias, residual, *(given or ()))
        return normalize(x, weight, bias, residual, run, given and (pair[0], pair[1]))
    return y


def pre_of(x: Tensor, weight: Tensor | None, bias: Tensor | None, run: Run) -> Tensor:
    """pre without a residual, by the operations of the forward pass that ran: leaky_relu's sides are its signs."""
    plan = run.plan.linear()
    if x.dtype is torch.float16:  # which has no room for a small pre
        x = x.float()
        plan = plan_for(
            Inputs(x, weight, bias, None, None, *run.statistics.unbind(0)), *plan.options.arguments
        )
    return normalize(x, weight, bias, None, Run(plan, run.statistics, math.inf))


def track(moving: Moving, statistics: Tensor) -> None:
    """mean += weight (batch mean - mean), var += weight (factor batch var - var), batches += 1, or an IndexError."""
    mean, var, batches, weight, m, correction, running_correction = moving
    factor = float((m - correction) / (m - running_correction))
    if weight is None:
        weight = 1 / max(1, int(batches) + 1)  # type: ignore[arg-type]  # a layer without a momentum counts
    run_track(mean.shape[0], (mean, CODES[mean.dtype]), (var, CODES[var.dtype]), batches, statistics, weight,
              factor)  # fmt: skip
    # A graph that has saved them for a gradient detects the change by their version.
    torch.autograd.graph.increment_version((mean, var) if batches is None else (mean, var, batches))


# ------------------------------------------------------------------------------------------------------ backward


def backward(
    dy: Tensor, x: Tensor, run: Run, sum_dy: Tensor, sum_dy_xhat: Tensor, *, reduce: bool, dx: Operand | None = None,
    gamma: Tensor | None = None, beta: Tensor | None = None, saved: Tensor | None = None,
    dresidual: Operand | None = None, weighted: bool = True,
) -> None:  # fmt: skip
    """gradient_sums (reduce: writes both sums) and input_gradient (writes dx, and dresidual where `saved` is read)."""
    plan, statistics, m, weights = run[:4]
    if not x.numel():  # nothing to add; the kernels would leave the sums as they are
        sum_dy.zero_()
        sum_dy_xhat.zero_()
        return
    eps, correction, _, slope = plan.options
    address, size = statistics.data_ptr(), statistics.nbytes // 2  # of a row: mean, var
    try:
        run_backward(reduce, dx is not None, plan.dtype, plan.view.shape, _read(x, plan), weights if weighted else None,
                     gamma if gamma is None else _vector(gamma), beta if beta is None else _vector(beta),
                     _read(dy, plan), saved if saved is None else _read(saved, plan), dx, dresidual,
                     (address, size), (address + size, size),
                     (sum_dy, CODES[sum_dy.dtype]), (sum_dy_xhat, CODES[sum_dy_xhat.dtype]), m, m - correction, eps,
                     plan.activation_grad, slope)  # fmt: skip
    except (IndexError, TypeError, ValueError) as error:  # the last two: a plan that was exchanged
        x, dy, gamma, beta, saved = within_memory(error, x, dy, gamma, beta, saved)
        backward(dy, x, run, sum_dy, sum_dy_xhat, reduce=reduce, dx=dx, gamma=gamma, beta=beta, saved=saved,
                 dresidual=dresidual, weighted=weighted)  # fmt: skip


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, saved: Tensor | None, run: Run,
    needs: tuple[bool, ...], total: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """dx, dweight, dbias, dresidual, of those that are needed; the others are None.

    total: of a batch on many processes, the sum over all of them; dweight and dbias are then this one's own sums.
    """
    need_x, need_weight, need_bias, need_residual = needs
    activated = run.plan.activated_residual  # dresidual = dy act'(pre) is written together with dx
    dx = dresidual = into = into_residual = None
    if need_x or (need_residual and activated):
        dx, into = _result_like(x, run.plan)
        if activated:
            dresidual, into_residual = _result_like(x, run.plan)
    beta = bias if run.plan.activation else None  # of bias, only the dtype of its gradient is needed then
    if total is None:
        dbias, dweight = _sum_for(bias, need_bias, x), _sum_for(weight, need_weight, x)
        reduce = run.m != math.inf or need_weight or need_bias
        backward(dy, x, run, dbias, dweight, reduce=reduce, dx=into, gamma=weight, beta=beta, saved=saved,
                 dresidual=into_residual)  # fmt: skip
    else:
        own = torch.zeros((2, x.shape[1]), dtype=torch.float64, device="cpu")
        dbias, dweight = own
        backward(dy, x, run, dbias, dweight, reduce=True, gamma=weight, beta=beta, saved=saved)
        backward(dy, x, run, *total(own), reduce=False, dx=into, gamma=weight, beta=beta, saved=saved,
                 dresidual=into_residual)  # fmt: skip
    if need_residual and not activated:
        dresidual = dy
    return (dx if need_x else None, dweight if need_weight else None, dbias if need_bias else None,
            dresidual if need_residual else None)  # fmt: skip


def _sum_for(parameter: Tensor | None, needed: bool, x: Tensor) -> Tensor:
    """Where a parameter's gradient goes; in float64, and for dx alone, where it is not needed."""
    if parameter is not None and needed:
        return parameter.new_empty(x.shape[1])  # whatever has become of the parameter's own shape
    return torch.zeros(x.shape[1], dtype=torch.float64, device="cpu")


def gradient_sums(dy: Tensor, x: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """sum(dy) and sum(dy xhat) in float64, without weights."""
    sum_dy, sum_dy_xhat = torch.empty((2, x.shape[1]), dtype=torch.float64, device="cpu")
    backward(dy, x, run, sum_dy, sum_dy_xhat, reduce=True, weighted=False)
    return sum_dy, sum_dy_xhat


def input_gradient(
    dy: Tensor, x: Tensor, gamma: Tensor, sum_dy: Tensor, sum_dy_xhat: Tensor, run: Run, *, weighted: bool
) -> Tensor:
    """gamma rstd (dy - w sum_dy / m - w xhat sum_dy_xhat / (m - c)), with these sums."""
    dx, into = _result_like(x, run.plan)
    backward(dy, x, run, sum_dy, sum_dy_xhat, reduce=False, dx=into, gamma=gamma, weighted=weighted)
    return dx
