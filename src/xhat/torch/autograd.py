"""Autograd's way to the kernels: the forward pass, its gradient, and the gradient of that, in closed form.

Whatever the kernels can't take (a batched or subclassed gradient, a tangent, a third derivative) goes through
`composed`, which torch differentiates itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from xhat import equations
from xhat.torch import composed, cpu
from xhat.torch.cpu import Pass
from xhat.torch.internals import batched, differentiating_forward, plain, transforming

__all__ = ["normalize"]

Maybe = Tensor | None


class Normalize(Function):
    """y = act(weight xhat + bias [+ residual]) on plain CPU tensors; Pass says with which statistics."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Maybe, bias: Maybe, residual: Maybe, p: Pass) -> Tensor:
        """The kernels' y; keeps x, the parameters and, with a residual, what `cpu.kept` names."""
        y = cpu.normalize(x, weight, bias, residual, p)
        linear = p.options.activation is None
        ctx.p = p
        ctx.bias = bias if linear else None  # for its dtype alone, whatever becomes of it
        ctx.save_for_backward(x, weight, None if linear else bias, cpu.kept(residual, y, p.options))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Maybe, ...]:
        """dx, dweight, dbias, dresidual."""
        x, weight, bias, extra = ctx.saved_tensors
        p: Pass = ctx.p
        bias = ctx.bias if p.options.activation is None else bias
        needs = ctx.needs_input_grad[:4]
        seen = transforming() or differentiating_forward() or batched(dy)
        if seen or not _as_before(dy, x, weight, extra):
            return *_composed(dy, x, weight, bias, extra, p, needs), None
        if torch.is_grad_enabled():
            return *_differentiable(dy, x, weight, bias, extra, p, needs), None
        return *cpu.gradients(dy, x, weight, bias, extra, p, needs), None


def _as_before(dy: Tensor, x: Tensor, weight: Maybe, extra: Maybe) -> bool:
    """Whether the kernels can take the gradient, and what hooks on saved tensors made of the tensors."""
    same = dy.shape == x.shape and dy.dtype == x.dtype and (weight is None or weight.shape == x.shape[1:2])
    return (
        same
        and plain(dy, x, weight, extra)
        and (extra is None or (extra.shape == x.shape and extra.dtype == x.dtype))
    )


def _composed(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, p: Pass, needs: tuple[bool, ...]
) -> tuple[Maybe, ...]:
    """The gradients by torch's operations, each in the dtype of what it is the gradient of."""
    found = composed.gradients(
        dy, x, weight, bias, extra, p.mask(x), None if p.batch else p.statistics, p.residual, p.options
    )
    parameters = (x, weight, bias, x)
    return tuple(
        g.to(t.dtype) if needed and t is not None else None
        for g, t, needed in zip(found, parameters, needs, strict=True)
    )


def _differentiable(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, p: Pass, needs: tuple[bool, ...]
) -> tuple[Maybe, ...]:
    """The gradients as a graph: through the activation by torch's operations, then through `InputGradient`."""
    g = dy
    if p.options.activation is not None:
        g = composed.activation_gradient(dy, _before_activation(x, weight, bias, extra, p), p.options)
    dx, dweight, dbias = input_gradient(g, x, weight, bias, p)
    found = (dx, dweight, dbias, g)
    return tuple(d if needed else None for d, needed in zip(found, needs, strict=True))


def _before_activation(x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, p: Pass) -> Tensor:
    """pre, or, for a leaky_relu, which asks for its sign alone, something of that sign."""
    if p.options.activation == "leaky_relu" and extra is not None:
        return extra.detach()
    mask = p.mask(x)
    linear = Pass(x, p.options.linear, None if p.batch else p.statistics, p.residual, mask)
    pre: Tensor = normalize(x, weight, bias, extra, linear)
    if mask is not None:
        pre = torch.where((mask == 0) & ~torch.isfinite(pre), 0.0, pre)  # no gradient passes a padded NaN
    return pre.detach() if p.options.activation == "leaky_relu" else pre


class InputGradient(Function):
    """dx, dweight, dbias of the batch norm without activation, as a function of dy, x and weight."""

    @staticmethod
    def forward(
        ctx: Any, dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, p: Pass
    ) -> tuple[Tensor, Maybe, Maybe]:
        """The kernels' gradients. Bias is asked for its dtype alone."""
        linear = p.linear(x)
        ctx.p = linear
        ctx.save_for_backward(dy, x, weight)
        needs = (True, weight is not None, bias is not None, False)
        dx, dweight, dbias, _ = cpu.gradients(dy, x, weight, bias, None, linear, needs)
        assert dx is not None
        return dx, dweight, dbias

    @staticmethod
    def backward(ctx: Any, v: Tensor, a: Maybe, b: Maybe) -> tuple[Maybe, ...]:
        """Gradients with respect to dy, x and weight, for cotangents v, a, b of dx, dweight, dbias."""
        dy, x, weight = ctx.saved_tensors
        p: Pass = ctx.p
        closed = not (
            transforming() or differentiating_forward() or batched(v, a, b) or torch.is_grad_enabled()
        )
        closed = closed and plain(v, a, b, dy, x, weight) and x.dtype.itemsize >= 4
        closed = closed and (
            p.weights is None or 1e-30 < float(p.weights.max()) < 1e30
        )  # w v is in x's dtype
        second = _second if closed else _composed_second
        return *second(v, a, b, dy, x, weight, p), None, None


def _composed_second(
    v: Tensor, a: Maybe, b: Maybe, dy: Tensor, x: Tensor, weight: Maybe, p: Pass
) -> tuple[Maybe, Maybe, Maybe]:
    """For third derivatives, tangents and batches of gradients."""
    statistics = None if p.batch else p.statistics
    ddy, dx, dweight, _, _ = composed.second_gradients(
        (v, a, b), dy, x, weight, None, None, p.mask(x), statistics, False, p.options
    )
    return ddy, dx, dweight


def _second(
    v: Tensor, a: Maybe, b: Maybe, dy: Tensor, x: Tensor, weight: Maybe, p: Pass
) -> tuple[Maybe, Maybe, Maybe]:
    """The closed form of `equations.second_gradient_sums`, each sum and map by the kernels."""
    o = p.options
    mean, var = p.statistics.unbind(0)
    zero, one = torch.zeros_like(mean), torch.ones_like(mean)
    gamma = one if weight is None else weight.double()
    rstd = equations.reciprocal_std(var, o.eps, torch.sqrt)
    wv, mask = v, p.mask(x)
    if mask is not None:
        wv = (v * mask).to(v.dtype)
        x = torch.where((mask == 0) & ~torch.isfinite(x), 0.0, x)  # 0 times NaN is NaN
    t = cpu.gradient_sums(wv, x, p)
    # sum v dy: the sums of v over a "batch" dy of mean 0 and standard deviation 1.
    plainly = Pass(dy, o._replace(eps=0.0), torch.stack((zero, one)), False)
    _, product = cpu.gradient_sums(v, dy, plainly)
    dgamma = zero if a is None else a.double()
    A, B, h_sum, h_sum_xhat, dweight = equations.second_gradient_sums(
        cpu.gradient_sums(dy, x, p),
        t,
        product,
        dgamma,
        gamma=gamma,
        rstd=rstd,
        m=p.count,
        correction=o.correction,
    )
    ddy = cpu.input_gradient(v, x, gamma, *t, p, weighted=False)
    if a is not None or b is not None:  # + a xhat + b
        constant = Pass(x, o, p.statistics, True)
        ddy = cpu.normalize(x, dgamma, b if b is None else b.double(), ddy, constant)
    column = (1, -1, *[1] * (x.dim() - 2))
    h = torch.addcmul(A.to(x.dtype).reshape(column) * dy, B.to(x.dtype).reshape(column), wv)
    dx = cpu.input_gradient(h, x, 1 / rstd, h_sum, h_sum_xhat, p, weighted=True)
    return ddy, dx, None if weight is None else dweight.to(weight.dtype)


# Function.apply looks for torch.func once more, which takes longer than a small kernel: who comes here has looked.
normalize = super(Function, Normalize).apply
input_gradient = super(Function, InputGradient).apply
