"""The kernels as differentiable functions: the forward pass, its gradient, and the gradient of that, in closed form.

What the kernels can't take (a batched or subclassed gradient, a tangent, a third derivative) goes through `composed`,
which torch differentiates itself.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xhat import equations
from xhat.checks import shown
from xhat.plan import Plan, saved_for_backward
from xhat.torch import composed
from xhat.torch.cpu import Run
from xhat.torch.errors import TensorArgumentError, TensorShapeError
from xhat.torch.inputs import CODES, Inputs
from xhat.torch.internals import batched, differentiating_forward, transforming
from xhat.torch.memory import check_memory

__all__ = ["normalize"]

Maybe = Tensor | None


class Normalize(Function):
    """y = act(weight xhat + bias [+ residual]) by an engine's kernels; the run says with which statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, run: Run) -> Tensor:
        """The kernels' y; saves x, the parameters and, with a residual, what `saved_for_backward` names."""
        y: Tensor = run.engine.normalize(x, weight, bias, residual, run)
        # The buffers of the layer are not kept.
        ctx.run = run if run.moving is None else run._replace(moving=None)
        if run.plan.activation:
            ctx.save_for_backward(
                x, weight, bias, saved_for_backward(run.plan.options.activation, y, residual)
            )
        else:  # only the dtype of bias is needed: it may change before the backward pass
            ctx.bias = bias
            ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Maybe, ...]:
        """dx, dweight, dbias, dresidual."""
        run = _run_of(ctx)
        x, weight, *rest = ctx.saved_tensors
        bias, saved = rest or (ctx.bias, None)
        needs = ctx.needs_input_grad[:4]
        _check_saved(x, weight, bias if run.plan.activation else None, saved, run)
        if transforming() or differentiating_forward() or not _for_kernels(dy, x, weight, bias, saved, run):
            return *_composed(dy, x, weight, bias, saved, run, needs), None
        if torch.is_grad_enabled():
            return *_differentiable(dy, x, weight, bias, saved, run, needs), None
        return *run.engine.gradients(dy, x, weight, bias, saved, run, needs), None


def _run_of(ctx: Any) -> Run:
    """The forward pass that a node of a graph holds. Raises TensorArgumentError where that was exchanged."""
    run = ctx.run
    if (
        type(run) is Run
        and type(run.plan) is Plan
        and type(run.m) is float
        and type(run.statistics) is Tensor
    ):
        return run
    raise TensorArgumentError(
        "batch_norm_backward: the node of this graph does not hold its forward pass any more. Leave its attributes as "
        "they are."
    )


def _check_saved(x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, run: Run) -> None:
    """Raises TensorShapeError where hooks on saved tensors, or their owners, have given them other shapes."""
    shape = run.plan.shape
    channels = shape[1:2]
    if (
        x.shape != shape
        or (weight is not None and weight.shape != channels)
        or (bias is not None and bias.shape != channels)
        or (run.plan.activated_residual if saved is None else saved.shape != shape)
        or not _intact(run)
    ):
        shapes = [shown(t.shape) for t in (x, weight, bias, saved) if t is not None]
        raise TensorShapeError(
            f"batch_norm_backward: the saved tensors have shapes {', '.join(shapes)}, expected {shown(shape)} and "
            f"{shown(channels)}, as in the forward pass. Hooks on saved tensors have to return them as they were, and "
            "tensors must keep their shapes until the backward pass."
        )


def _intact(run: Run) -> bool:
    """Whether nobody has changed the tensors that the kernels read by the shape of the plan."""
    outer, channels, inner = run.plan.view.shape
    statistics, weights = run.statistics, run.weights
    return (
        statistics.shape == (2, channels)
        and len(statistics.untyped_storage()) - 8 * statistics.storage_offset() >= 16 * channels
        and statistics.dtype is torch.float64
        and statistics.is_contiguous()
        and (
            weights is None
            or (
                weights.shape == (outer * inner,)
                and weights.dtype is torch.float64
                and weights.is_contiguous()
            )
        )
    )


def _for_kernels(dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, run: Run) -> bool:
    """Whether the kernels can take the gradient, and what hooks on saved tensors have returned."""
    return (
        run.engine.takes(dy, x, weight, bias, saved)
        and not batched(dy)
        and dy.shape == x.shape
        and dy.dtype == x.dtype
        and CODES.get(x.dtype) == run.plan.dtype
        and (saved is None or saved.dtype == x.dtype)
    )


def _composed(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, run: Run, needs: tuple[bool, ...]
) -> tuple[Maybe, ...]:
    """The gradients by torch's operations, each in the dtype of what it is the gradient of."""
    check_memory(dy, x, weight, bias, saved)
    o, residual = run.plan.options, run.plan.residual
    by_sign = o.activation == "leaky_relu" and saved is None
    if by_sign and run.engine.takes(x, weight, bias) and CODES.get(x.dtype) == run.plan.dtype:
        # The sides that the kernels' forward pass had, as behind a residual.
        saved, residual = run.engine.pre_of(x.detach(), weight, bias, run), True
    found = composed.gradients(dy, _inputs(x, weight, bias, run), saved, residual, o)
    parameters = (x, weight, bias, x)
    return tuple(
        g.to(t.dtype) if needed and t is not None else None
        for g, t, needed in zip(found, parameters, needs, strict=True)
    )


def _inputs(x: Tensor, weight: Maybe, bias: Maybe, run: Run) -> Inputs:
    """What `composed` needs of a run."""
    mean, var = (None, None) if run.batch else run.statistics.unbind(0)
    return Inputs(x, weight, bias, None, run.mask(), mean, var)


def _differentiable(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, run: Run, needs: tuple[bool, ...]
) -> tuple[Maybe, ...]:
    """The gradients as a graph: through the activation by torch's operations, then through `InputGradient`."""
    check_memory(dy, x, weight, bias, saved)
    g = dy
    if run.plan.activation:
        g = composed.activation_gradient(
            dy, _before_activation(x, weight, bias, saved, run), run.plan.options
        )
    dx, dweight, dbias = input_gradient(g, x, weight, bias, run)
    found = (dx, dweight, dbias, g)
    return tuple(d if needed else None for d, needed in zip(found, needs, strict=True))


def _before_activation(x: Tensor, weight: Maybe, bias: Maybe, saved: Maybe, run: Run) -> Tensor:
    """pre; for a leaky_relu, of which the sign is enough, any tensor of that sign."""
    if run.plan.options.activation == "leaky_relu":
        return run.engine.pre_of(x, weight, bias, run) if saved is None else saved.detach()
    linear = run.linear()
    if run.batch:  # the statistics are computed again, since pre depends on x through them
        linear = linear._replace(statistics=torch.empty_like(run.statistics))
    pre: Tensor = normalize(x, weight, bias, saved, linear)
    if (mask := run.mask()) is not None:
        # Padding: dy = 0 times NaN must give 0.
        pre = torch.where((mask == 0) & ~torch.isfinite(pre), 0.0, pre)
    return pre


class InputGradient(Function):
    """dx, dweight, dbias of the batch norm without activation, as a function of dy, x and weight."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, run: Run
    ) -> tuple[Tensor, Maybe, Maybe]:
        """The kernels' gradients. Of bias only the dtype is used."""
        ctx.run = linear = run.linear()
        ctx.save_for_backward(dy, x, weight)
        needs = (True, weight is not None, bias is not None, False)
        dx, dweight, dbias, _ = run.engine.gradients(dy, x, weight, bias, None, linear, needs)
        assert dx is not None
        return dx, dweight, dbias

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Maybe, b: Maybe) -> tuple[Maybe, ...]:
        """Gradients with respect to dy, x and weight, for cotangents v, a, b of dx, dweight, dbias."""
        dy, x, weight = ctx.saved_tensors
        run = _run_of(ctx)
        _check_saved(x, weight, None, dy, run)
        check_memory(x, weight, dy, v, a, b)
        closed = not (
            transforming()
            or differentiating_forward()
            or torch.is_grad_enabled()
            or any(g is not None and batched(g) for g in (v, a, b))
        )
        closed = closed and run.engine.takes(v, a, b, dy, x, weight) and x.dtype.itemsize >= 4
        closed = closed and v.dtype == dy.dtype == x.dtype and CODES[x.dtype] == run.plan.dtype
        closed = closed and (run.weights is None or _zeros_and_ones(run.weights))  # else w v is rounded
        second = _second if closed else _composed_second
        return *second(v, a, b, dy, x, weight, run), None, None


def _composed_second(
    v: Tensor, a: Maybe, b: Maybe, dy: Tensor, x: Tensor, weight: Maybe, run: Run
) -> tuple[Maybe, Maybe, Maybe]:
    """For third derivatives, tangents and batches of gradients."""
    t = _inputs(x, weight, None, run)
    ddy, dx, dweight, *_ = composed.second_gradients((v, a, b), dy, t, None, False, run.plan.options)
    return ddy, dx, dweight


def _zeros_and_ones(weights: Tensor) -> bool:
    return bool(torch.all((weights == 0) | (weights == 1)))


def _less_means(v: Tensor, dy: Tensor, w: Maybe, run: Run) -> tuple[Tensor, Tensor]:
    """v - sum(w v) / m and dy - w sum(dy) / m, subtracted before anything is scaled, so that an offset costs no digits.

    Second derivatives do not depend on these shifts, except behind given statistics, where no term cancels.
    """
    if not run.batch:
        return v, dy
    if w is not None:
        axes = [a for a in range(v.dim()) if a != 1]
        wide_v, wide_dy = v.double(), dy.double()
        wide_v = wide_v - (w * wide_v).sum(axes, keepdim=True) / run.m
        wide_dy = wide_dy - w * (wide_dy.sum(axes, keepdim=True) / run.m)
        return wide_v.to(v.dtype), wide_dy.to(v.dtype)
    plan = run.plan.linear()
    plan = plan._replace(options=plan.options._replace(eps=0.0))

    def less_mean(t: Tensor) -> Any:
        _, _, (mean, _) = run.engine.moments(t, None)
        given = Run(plan, torch.stack((mean, torch.ones_like(mean))), math.inf, None, run.engine)
        return run.engine.normalize(t, None, None, None, given)

    return less_mean(v), less_mean(dy)


def _second(
    v: Tensor, a: Maybe, b: Maybe, dy: Tensor, x: Tensor, weight: Maybe, run: Run
) -> tuple[Maybe, Maybe, Maybe]:
    """The closed form of `equations.second_gradient_sums`, each sum and map by the kernels."""
    o = run.plan.options
    mean, var = run.statistics.unbind(0)
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    gamma = one if weight is None else weight.double()
    rstd = equations.reciprocal_std(var, o.eps, torch.sqrt)
    mask = run.mask()
    v, dy = _less_means(v, dy, mask, run)
    wv = v
    if mask is not None:
        wv = (v * mask).to(v.dtype)
        x = torch.where((mask == 0) & ~torch.isfinite(x), 0.0, x)  # 0 times NaN is NaN
    t = run.engine.gradient_sums(wv, x, run)
    # sum v dy: the sums of v over a "batch" dy of mean 0 and standard deviation 1.
    plain = run.plan._replace(options=o._replace(eps=0.0))
    plain_sum = Run(plain, torch.stack((zero, one)), math.inf, None, run.engine)
    _, product = run.engine.gradient_sums(v, dy, plain_sum)
    dgamma = zero if a is None else a.double()
    A, B, h_sum, h_sum_xhat, dweight = equations.second_gradient_sums(
        run.engine.gradient_sums(dy, x, run),
        t,
        product,
        dgamma,
        gamma=gamma,
        rstd=rstd,
        m=run.m,
        correction=o.correction,
    )
    ddy = run.engine.input_gradient(v, x, gamma, *t, run, weighted=False)
    if a is not None or b is not None:  # + a xhat + b
        constants = run._replace(m=math.inf, weights=None)
        ddy = run.engine.normalize(x, dgamma, None if b is None else b.double(), ddy, constants)
    column = (1, -1, *[1] * (x.dim() - 2))
    h = torch.addcmul(A.to(x.dtype).reshape(column) * dy, B.to(x.dtype).reshape(column), wv)
    dx = run.engine.input_gradient(h, x, 1 / rstd, h_sum, h_sum_xhat, run, weighted=True)
    return ddy, dx, None if weight is None else dweight.to(weight.dtype)


# Function.apply tests for torch.func transforms again, which takes longer than a small kernel; the gate has done so.
normalize = super(Function, Normalize).apply
input_gradient = super(Function, InputGradient).apply
