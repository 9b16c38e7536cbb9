"""The equations over torch's own operations: for any device, any transform, and gradients of any order.

The formulas are those of `xhat.equations`; here is only what they are summed over and in which precision: in
float64 on the CPU, elsewhere in float32 at least. Values are taken relative to a rough mean first, which the
equations cancel, so that an offset costs no digits in float32 either.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xhat import equations
from xhat.torch.options import Batch, Options

__all__ = [
    "Others",
    "activate",
    "activation_gradient",
    "batch_norm",
    "gradients",
    "moments",
    "second_gradients",
]


def _precision(x: Tensor, *others: Tensor | None) -> torch.dtype:
    """What the equations are computed in."""
    if x.device.type in ("cpu", "meta"):
        return torch.float64
    wide = any(t is not None and t.dtype == torch.float64 for t in (x, *others))
    return torch.float64 if wide else torch.float32


def _column(vector: Tensor | None, x: Tensor, dtype: torch.dtype) -> Any:
    """A number per channel, broadcast against x; None stays None."""
    return None if vector is None else vector.to(dtype).reshape(1, -1, *[1] * (x.dim() - 2))


class Others(NamedTuple):
    """What a rank knows of a batch that lies on many: its sums over all ranks, m and the mean."""

    total: Callable[[Tensor], Tensor]  # over the ranks, of what each has summed over its own part
    m: Tensor
    mean: Tensor


class Centred(NamedTuple):
    """x relative to a rough mean, which mu is relative to as well, and the weights: what every equation starts from."""

    x: Tensor
    origin: Tensor
    mu: Tensor
    var: Tensor
    m: Any = math.inf
    w: Any = 1
    lost: Tensor | None = None  # what is no number and has no weight

    @property
    def batch(self) -> bool:
        """Whether the statistics are a batch's, and no constants."""
        return self.m is not math.inf

    def standardized(self, eps: float) -> tuple[Tensor, Tensor]:
        """xhat and rstd."""
        rstd = equations.reciprocal_std(self.var, eps, torch.sqrt)
        return equations.standardize(self.x, self.mu, rstd), rstd


class _Weighed(NamedTuple):
    """A batch's values, those without weight being numbers, their weights, and the sum of these."""

    x: Tensor
    m: Any
    w: Any = 1
    lost: Tensor | None = None


def _weighed(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> _Weighed:
    wide = x.to(dtype)
    if mask is None:
        return _Weighed(wide, x.numel() // x.shape[1])
    # Expanded: its sum over the batch is m for every channel.
    w = mask.to(dtype).expand([x.shape[0], 1, *x.shape[2:]])
    lost = (w == 0) & ~torch.isfinite(wide)
    return _Weighed(torch.where(lost, 0.0, wide), w.sum(), w, lost)  # 0 times NaN is NaN


def _summed(v: Tensor) -> Tensor:
    """The sum over a channel, of values that are here."""
    return v.sum([0, *range(2, v.dim())], keepdim=True)


def _by_statistics(wide: Tensor, mean: Tensor, var: Tensor | None) -> Centred:
    """By given mean and variance, which do not depend on x."""
    origin = _column(mean, wide, wide.dtype)
    return Centred(wide - origin, origin, torch.zeros_like(origin), _column(var, wide, wide.dtype))


def _by_batch(b: _Weighed, origin: Tensor, total: Callable[[Tensor], Tensor], o: Options) -> Centred:
    """By the batch's own mean and variance; total: the sum over a channel, of the whole batch."""
    x = b.x - origin
    mu, m2 = equations.moments(x, total, b.m, b.w)
    return Centred(x, origin, mu, equations.variance(m2, b.m, o.correction), b.m, b.w, b.lost)


def _centred(
    x: Tensor, mask: Tensor | None, mean: Tensor | None, var: Tensor | None, o: Options, dtype: torch.dtype,
    others: Others | None = None,
) -> Centred:  # fmt: skip
    """By given statistics, by those of x, or, with others, by those of a batch that x is a part of."""
    if mean is not None and others is None:
        return _by_statistics(x.to(dtype), mean, var)
    b = _weighed(x, mask, dtype)
    if others is None:
        return _by_batch(b, _summed(b.w * b.x.detach()) / b.m, _summed, o)
    b = b._replace(m=others.m.to(dtype))
    if mean is not None:
        return _by_statistics(b.x, mean, var)._replace(m=b.m, w=b.w, lost=b.lost)
    return _by_batch(b, _column(others.mean, x, dtype), lambda v: others.total(_summed(v)), o)


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mask: Tensor | None,
    mean: Tensor | None, var: Tensor | None, o: Options, dtype: torch.dtype | None = None,
) -> tuple[Tensor, Batch]:  # fmt: skip
    """y = act(weight xhat + bias [+ residual]) with given statistics, or, where mean is None, with the batch's own.

    dtype: what to compute in, at least; None for the default.
    """
    dtype = _precision(x, weight, mean) if dtype is None else torch.promote_types(x.dtype, dtype)
    c = _centred(x, mask, mean, var, o, dtype)
    rstd = equations.reciprocal_std(c.var, o.eps, torch.sqrt)
    gamma, beta = _column(weight, x, dtype), _column(bias, x, dtype)
    pre = equations.normalize(c.x, c.mu, rstd, 1 if gamma is None else gamma, 0 if beta is None else beta)
    if residual is not None:
        pre = pre + residual
    if c.lost is not None:
        pre = torch.where(c.lost, math.nan, pre)
    y = activate(pre, o).to(x.dtype)
    return y, Batch(torch.stack(((c.origin + c.mu).flatten(), c.var.flatten())).detach(), _constant(c.m))


def _constant(m: Any) -> Any:
    return m.detach() if isinstance(m, Tensor) else m


def moments(x: Tensor, mask: Tensor | None) -> tuple[float, int, Tensor]:
    """m, the number of values that have a weight, and mean and m2 (2, C) in float64; zeros where there are none."""
    c = _centred(x, mask, None, None, Options(1.0, 0, None, 0.0), _precision(x))
    values = x.numel() // x.shape[1] if mask is None else int(torch.count_nonzero(c.w))
    found = torch.stack(((c.origin + c.mu).flatten(), (c.var * c.m).flatten())).double()
    return float(c.m), values, found if values else torch.zeros_like(found)


def activate(pre: Tensor, o: Options) -> Tensor:
    """act(pre), as torch defines it: its derivatives of every order are finite at both ends."""
    if o.activation is None:
        return pre
    if o.activation == "silu":
        return F.silu(pre)
    return F.leaky_relu(pre, o.slope) if o.slope else F.relu(pre)


def activation_gradient(dy: Tensor, pre: Tensor, o: Options) -> Tensor:
    """dy act'(pre); for leaky_relu, anything of pre's sign will do for pre."""
    if o.activation is None:
        return dy
    if o.activation == "silu":
        sigma = torch.sigmoid(pre)  # torch's own silu_backward has no derivative
        slope: Tensor = equations.silu_slope(pre, sigma)
        return dy * slope
    return torch.where(pre <= 0, dy * o.slope, dy)


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, extra: Tensor | None, mask: Tensor | None,
    statistics: Tensor | None, residual: bool, o: Options, others: Others | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """dx, dweight, dbias, dresidual of `batch_norm`, by the closed form; differentiable again, to any order.

    extra: y or the residual (see `cpu.kept`). statistics: constants (2, C), or None for the batch's. others: of a batch
    on many ranks; dweight and dbias are this rank's sums.
    """
    dtype = _precision(x, weight, statistics)
    mean, var = (None, None) if statistics is None else statistics.unbind(0)
    c = _centred(x, mask, mean, var, o, dtype, others)
    xhat, rstd = c.standardized(o.eps)
    gamma, beta = _column(weight, x, dtype), _column(bias, x, dtype)
    gamma = 1 if gamma is None else gamma
    g = dy.to(dtype)
    if o.activation is not None:
        pre = gamma * xhat + (0 if beta is None else beta)
        if residual:
            assert extra is not None
            pre = extra.to(dtype) if o.activation == "leaky_relu" else pre + extra
        g = activation_gradient(g, pre, o)
    if c.lost is not None:
        xhat = torch.where(c.lost & (g != 0), math.nan, xhat)  # the loss looks at it
    sum_dy, sum_dy_xhat = equations.gradient_sums(g, xhat, _summed)
    sums: Any = (sum_dy, sum_dy_xhat)
    if others is not None:
        sums = others.total(torch.stack(sums)).unbind(0)  # together: an exchange takes its time
    # No path leads through constant statistics, whatever number xhat is.
    through = (xhat, *sums) if c.batch else (0.0, 0.0, 0.0)
    dx = equations.input_gradient(g, *through, gamma=gamma, rstd=rstd, m=c.m, correction=o.correction, w=c.w)
    return dx.to(x.dtype), sum_dy_xhat.reshape(-1), sum_dy.reshape(-1), g.to(x.dtype)


def second_gradients(
    cotangents: tuple[Tensor | None, ...], dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None,
    extra: Tensor | None, mask: Tensor | None, statistics: Tensor | None, residual: bool, o: Options,
    others: Others | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of `gradients` with respect to dy, x, weight, bias and extra, by autograd: again to any order."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: dy may be made from x, and that path is no part of this derivative.
        given = [
            t.view_as(t) if t is not None and t.requires_grad else t for t in (dy, x, weight, bias, extra)
        ]
        dy_, x_, weight_, bias_, extra_ = given
        assert dy_ is not None and x_ is not None
        found = gradients(dy_, x_, weight_, bias_, extra_, mask, statistics, residual, o, others)
        # An empty cotangent stands for none, except of what is empty itself.
        pairs = [
            (f, c.to(f.dtype).reshape(f.shape))
            for f, c in zip(found, cotangents, strict=False)
            if c is not None and c.numel() == f.numel() and f.requires_grad
        ]
        if not pairs:
            return (None,) * len(given)
        outputs, weights = zip(*pairs, strict=True)
        inputs = [t for t in given if t is not None and t.requires_grad]
        wanted = iter(torch.autograd.grad(outputs, inputs, weights, create_graph=again, allow_unused=True))
    return tuple(next(wanted) if t is not None and t.requires_grad else None for t in given)
