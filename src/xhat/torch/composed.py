"""The equations over torch's own operations: for any device, any transform, and gradients of any order.

The formulas are those of `xhat.equations`. This file chooses what they are summed over and the precision: float64 on
the CPU, at least float32 elsewhere. A rough mean is subtracted first, from x and from its gradient. It cancels in the
equations, and so a large offset of either costs no digits in float32.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from xhat import equations
from xhat.plan import Options
from xhat.torch.centering import centering, less_rough_mean, summed
from xhat.torch.inputs import Batch, Inputs

__all__ = [
    "AcrossRanks",
    "activate",
    "activation_gradient",
    "batch_norm",
    "gradients",
    "moments",
    "second_gradients",
    "unread_moments",
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


class AcrossRanks(NamedTuple):
    """What a rank knows of a batch that is spread over many: how to sum over all ranks, m and the mean."""

    total: Callable[[Tensor], Tensor]  # the sum over ranks of what each has summed over its own part
    m: Tensor
    mean: Tensor


class Centred(NamedTuple):
    """x and mu relative to a shift, a rough mean, and the weights: the operands of every equation."""

    x: Tensor
    shift: Tensor
    mu: Tensor
    var: Tensor
    m: Any = math.inf
    w: Any = 1
    padding: Tensor | None = None  # where w is 0 and x was NaN or infinite; 0 stands there

    @property
    def batch(self) -> bool:
        """Whether the statistics are the batch's own; else they are given constants."""
        return self.m is not math.inf

    def standardized(self, eps: float) -> tuple[Tensor, Tensor]:
        """xhat and rstd."""
        rstd = equations.reciprocal_std(self.var, eps, torch.sqrt)
        return equations.standardize(self.x, self.mu, rstd), rstd


class _Weighed(NamedTuple):
    """A batch's finite elements, their weights, and the sum of the weights."""

    x: Tensor
    m: Any
    w: Any = 1
    padding: Tensor | None = None


def _weighed(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> _Weighed:
    wide = x.to(dtype)
    if mask is None:
        return _Weighed(wide, x.numel() // x.shape[1])
    # Expanded over the batch, so that its sum is m.
    w = mask.to(dtype).expand([x.shape[0], 1, *x.shape[2:]])
    padding = (w == 0) & ~torch.isfinite(wide)
    return _Weighed(torch.where(padding, 0.0, wide), w.sum(), w, padding)  # 0 times NaN is NaN


def _by_statistics(wide: Tensor, mean: Tensor, var: Tensor | None) -> Centred:
    """The operands for a given mean and variance, which do not depend on x."""
    shift = _column(mean, wide, wide.dtype)
    rest = torch.zeros_like(shift)
    if torch.promote_types(mean.dtype, wide.dtype) != wide.dtype:
        rest = (_column(mean, wide, mean.dtype) - shift).to(wide.dtype)  # what rounding the mean leaves over
    return Centred(wide - shift, shift, rest, _column(var, wide, wide.dtype))


def _by_batch(b: _Weighed, shift: Tensor, total: Callable[[Tensor], Tensor], o: Options) -> Centred:
    """The operands for the batch's own mean and variance; total: the sum over a channel of the whole batch."""
    x = b.x - shift
    mu, m2 = equations.moments(x, total, b.m, b.w)
    m2 = m2 + 0 * m2  # NaN where a square overflows: an infinite variance would hide x
    return Centred(x, shift, mu, equations.variance(m2, b.m, o.correction), b.m, b.w, b.padding)


def _centred(t: Inputs, o: Options, dtype: torch.dtype, ranks: AcrossRanks | None = None) -> Centred:
    """The operands for given statistics, those of x, or, with ranks, those of a batch that x is a part of."""
    if t.mean is not None and ranks is None:
        return _by_statistics(t.x.to(dtype), t.mean, t.var)
    b = _weighed(t.x, t.mask, dtype)
    if ranks is None:
        return _by_batch(b, summed(b.w * b.x.detach()) / b.m, summed, o)
    b = b._replace(m=ranks.m.to(dtype))
    if t.mean is not None:
        return _by_statistics(b.x, t.mean, t.var)._replace(m=b.m, w=b.w, padding=b.padding)
    return _by_batch(b, _column(ranks.mean, t.x, dtype), lambda v: ranks.total(summed(v)), o)


def batch_norm(t: Inputs, o: Options, dtype: torch.dtype | None = None) -> tuple[Tensor, Batch]:
    """y = act(weight xhat + bias [+ residual]) with given statistics, or, where mean is None, with the batch's own.

    dtype: what to compute in, at least; None for the default.
    """
    x, weight, bias, residual = t[:4]
    dtype = _precision(x, weight, t.mean) if dtype is None else torch.promote_types(x.dtype, dtype)
    c = _centred(t, o, dtype)
    rstd = equations.reciprocal_std(c.var, o.eps, torch.sqrt)
    gamma, beta = _column(weight, x, dtype), _column(bias, x, dtype)
    pre = equations.standardize(c.x, c.mu, rstd if gamma is None else gamma * rstd)
    if c.batch:
        pre = centering(pre, c.w, c.m)
    pre = pre if beta is None else pre + beta
    if residual is not None:
        pre = pre + residual
    if c.padding is not None:
        pre = torch.where(c.padding, math.nan, pre)
    y = activate(pre, o).to(x.dtype)
    return y, Batch(torch.stack(((c.shift + c.mu).flatten(), c.var.flatten())).detach(), _constant(c.m))


def _constant(m: Any) -> Any:
    return m.detach() if isinstance(m, Tensor) else m


def moments(x: Tensor, mask: Tensor | None) -> tuple[float, int, Tensor]:
    """m, the number of values that have a weight, and mean and m2 (2, C) in float64; zeros where there are none."""
    c = _centred(Inputs(x, None, None, None, mask, None, None), Options(1.0, 0, None, 0.0), _precision(x))
    values = x.numel() // x.shape[1] if mask is None else int(torch.count_nonzero(c.w))
    mean = c.shift.double() + c.mu.double()  # in float32 the sum would be rounded
    found = torch.stack((mean.flatten(), (c.var * c.m).flatten().double()))
    return float(c.m), values, found if values else torch.zeros_like(found)


def unread_moments(x: Tensor, mask: Tensor | None) -> tuple[Any, Tensor]:
    """m, a number or a scalar, and mean and m2 (2, C) in float64, without a wait for the device; zeros where m is 0."""
    c = _centred(Inputs(x, None, None, None, mask, None, None), Options(1.0, 0, None, 0.0), _precision(x))
    found = torch.stack((c.shift.double() + c.mu.double(), (c.var * c.m).double())).flatten(1)
    return c.m, torch.where(found.new_full((), c.m) > 0 if mask is None else c.m > 0, found, 0.0)


def activate(pre: Tensor, o: Options) -> Tensor:
    """act(pre), as torch defines it: its derivatives of every order are finite at both ends."""
    if o.activation is None:
        return pre
    if o.activation == "silu":
        return F.silu(pre)
    if o.activation == "leaky_relu":
        return F.leaky_relu(pre, o.slope) if o.slope else F.relu(pre)
    raise KeyError(o.activation)


def activation_gradient(dy: Tensor, pre: Tensor, o: Options) -> Tensor:
    """dy act'(pre); for leaky_relu, anything of pre's sign will do for pre."""
    if o.activation is None:
        return dy
    if o.activation == "silu":
        sigma = torch.sigmoid(pre)  # torch's own silu_backward has no derivative
        slope: Tensor = equations.silu_slope(pre, sigma)
        return dy * slope
    if o.activation == "leaky_relu":
        return torch.where(pre <= 0, dy * o.slope, dy)
    raise KeyError(o.activation)


def _rough_mean(g: Tensor, c: Centred, t: Inputs, ranks: AcrossRanks | None) -> tuple[Any, Any]:
    """A rough mean of g over the elements on this rank, on which dx does not depend, and the sum of their weights.

    0 where it would not cancel, and for a batch on many ranks whose sums are differentiated once more or are float64.
    """
    if not c.batch or (ranks is not None and (t.mean is None or g.dtype == torch.float64)):
        return 0.0, 0.0
    with torch.no_grad():  # legacy vmap has no rule for detach
        m = c.m
        if ranks is not None:
            m = summed(c.w).sum() if isinstance(c.w, Tensor) else g.numel() // g.shape[1]
        rough = summed(g) / m
        return (rough if ranks is None else torch.where(torch.isfinite(rough), rough, 0.0)), m


def _across(
    ranks: AcrossRanks, sums: tuple[Tensor, Tensor], removed: tuple[Any, Any], c: Centred, rstd: Tensor, t: Inputs
) -> tuple[Any, Any]:  # fmt: skip
    """This rank's sums of dy and dy xhat, and those of all ranks where this rank's rough mean is subtracted.

        sum dy       gains m_r rough_r
        sum dy xhat  gains T_r rough_r     T_r = sum(w xhat) = rstd m_r (mean_r - mean)

    in float64. The T_r of all ranks sum to 0, as the means are those that were merged; no sum of float32 would.
    """
    rough, m = removed
    if not isinstance(rough, Tensor):
        mine = sums
        return mine, ranks.total(torch.stack(sums)).unbind(0)  # one exchange for both
    rough = rough.double()
    mean = moments(t.x, t.mask)[2][0] if m else t.mean
    assert t.mean is not None and mean is not None
    difference = _column(mean, t.x, torch.float64) - _column(t.mean, t.x, torch.float64)
    wide = sums[0].double() + rough * m, sums[1].double() + rstd.double() * m * difference * rough
    sum_dy, sum_dy_xhat = ranks.total(torch.stack(wide)).unbind(0)
    return wide, ((sum_dy - rough * c.m.double()).to(rstd.dtype), sum_dy_xhat.to(rstd.dtype))


def gradients(
    dy: Tensor, t: Inputs, saved: Tensor | None, residual: bool, o: Options, ranks: AcrossRanks | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias, dresidual of `batch_norm`, by the closed form; differentiable again, to any order.

    saved: what `saved_for_backward` names. residual: whether there was one. ranks: for a batch on many ranks;
    dweight and dbias are then this rank's sums.
    """
    x, weight, bias = t[:3]
    dtype = _precision(x, weight, t.mean)
    c = _centred(t, o, dtype, ranks)
    xhat, rstd = c.standardized(o.eps)
    gamma, beta = _column(weight, x, dtype), _column(bias, x, dtype)
    gamma = 1 if gamma is None else gamma
    g = dy.to(dtype)
    if o.activation is not None:
        # By the operations of the forward pass: an element of relu is on the side that it had there.
        pre = equations.normalize(c.x, c.mu, rstd, gamma, 0 if beta is None else beta)
        if residual:
            assert saved is not None
            pre = saved.to(dtype) if o.activation == "leaky_relu" else pre + saved
        g = activation_gradient(g, pre, o)
    if c.padding is not None:
        xhat = torch.where(c.padding & (g != 0), math.nan, xhat)  # dy is not 0 there: the loss depends on it
    rough, m = _rough_mean(g, c, t, ranks)
    direct = less_rough_mean(g, rough, c.w) if isinstance(rough, Tensor) else g
    sum_dy, sum_dy_xhat = equations.gradient_sums(direct, xhat, summed)
    mine: Any = (sum_dy + rough * m, sum_dy_xhat)
    sums: Any = (sum_dy, sum_dy_xhat)
    if ranks is not None:
        mine, sums = _across(ranks, sums, (rough, m), c, rstd, t)
    # No path leads through given statistics, even where xhat is not finite.
    through = (xhat, *sums) if c.batch else (0.0, 0.0, 0.0)
    dx = equations.input_gradient(
        direct, *through, gamma=gamma, rstd=rstd, m=c.m, correction=o.correction, w=c.w
    )
    dbias, dweight = mine
    return dx.to(x.dtype), dweight.reshape(-1), dbias.reshape(-1), g.to(x.dtype)


def second_gradients(
    cotangents: tuple[Tensor | None, ...], dy: Tensor, t: Inputs, saved: Tensor | None, residual: bool, o: Options,
    ranks: AcrossRanks | None = None,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of `gradients` with respect to dy, x, weight, bias and saved, by autograd: again to any order."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Aliases: dy may be made from x, and that path is no part of this derivative.
        given = [a.view_as(a) if a is not None and a.requires_grad else a for a in (dy, *t[:3], saved)]
        dy_, x_, weight_, bias_, saved_ = given
        assert dy_ is not None and x_ is not None
        found = gradients(dy_, t._replace(x=x_, weight=weight_, bias=bias_), saved_, residual, o, ranks)
        # An operator returns an empty tensor for a gradient that does not exist; its cotangent is left out.
        pairs = [
            (f, c.to(f.dtype).reshape(f.shape))
            for f, c in zip(found, cotangents, strict=False)
            if c is not None and c.numel() == f.numel() and f.requires_grad
        ]
        if not pairs:
            return (None,) * len(given)
        outputs, weights = zip(*pairs, strict=True)
        inputs = [a for a in given if a is not None and a.requires_grad]
        wanted = iter(torch.autograd.grad(outputs, inputs, weights, create_graph=again, allow_unused=True))
    return tuple(next(wanted) if a is not None and a.requires_grad else None for a in given)
