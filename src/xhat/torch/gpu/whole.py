"""A pass in one launch, where a program holds all elements of its channels in registers: x is read once.

Small layers spend their time on launches, and layers of 7 x 7 on the second read.
"""

import triton.language as tl

from xhat.torch.gpu.formulas import (
    FROM_RESIDUAL,
    FROM_X,
    NO_ACTIVATION,
    act,
    act_gradient,
    before_activation,
    centred,
    elements,
    move_running,
    places,
    rounded,
    sizes,
    terms_of,
)
from xhat.torch.gpu.proved import variance
from xhat.torch.gpu.sums import kernel

__all__ = ["backward", "forward"]


@kernel
def forward(
    x, residual, y, mean, var, gamma, beta, running_mean, running_var, batches, count_v, channels_v, x_outer, x_channel,
    residual_outer, residual_channel, y_outer, y_channel, inner_v, correction: tl.float64, eps: tl.float64,
    weight: tl.float64, factor: tl.float64, VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, RESIDUAL: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr,
    MOVED: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """mean and var (C) of the batch in two exact passes over registers, and y. The running statistics follow."""
    count, channels = sizes(count_v, channels_v, VEC, LANES)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, ROWS)
    inside = c < channels
    here = (k < count)[:, None] & inside[None, :]
    v = elements(x, places(k, c, x_outer, x_channel, inner_v, VEC, LANES), here, WIDE)
    m = count.to(tl.float64)
    mu = tl.sum(v.to(tl.float64), 0) / m
    d = tl.where(here, v.to(tl.float64) - mu[None, :], 0.0)
    m2 = tl.sum(d * d, 0)
    spread = variance(
        m2 + 0 * m2, m, correction
    )  # NaN where a square overflows: an infinite var would hide x
    tl.store(mean + c, mu, mask=inside)
    tl.store(var + c, spread, mask=inside)
    move_running(running_mean, running_var, batches, mu, spread, c, inside, weight, factor, MOVED)
    high, low, scale, shift, _ = terms_of(mu, spread, gamma, beta, c, channels, eps, GAMMA, BETA, WIDE)
    pre = before_activation(v, high[None, :], low[None, :], scale[None, :], shift[None, :])
    if RESIDUAL:
        pre += elements(
            residual, places(k, c, residual_outer, residual_channel, inner_v, VEC, LANES), here, WIDE
        )
    to = y + places(k, c, y_outer, y_channel, inner_v, VEC, LANES)
    tl.store(to, act(pre, ACTIVATION, SLOPE).to(y.dtype.element_ty), mask=here)


@kernel
def backward(
    dy, x, saved, dx, dresidual, mean, var, gamma, beta, dgamma, dbeta, count_v, channels_v, dy_outer, dy_channel,
    x_outer, x_channel, saved_outer, saved_channel, dx_outer, dx_channel, inner_v, correction: tl.float64,
    eps: tl.float64, VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, SOURCE: tl.constexpr, DRESIDUAL: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr,
    WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """dgamma, dbeta, dx and dresidual of a batch's own statistics; two reads, one write."""
    count, channels = sizes(count_v, channels_v, VEC, LANES)
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, ROWS)
    inside = c < channels
    here = (k < count)[:, None] & inside[None, :]
    g = elements(dy, places(k, c, dy_outer, dy_channel, inner_v, VEC, LANES), here, WIDE)
    v = elements(x, places(k, c, x_outer, x_channel, inner_v, VEC, LANES), here, WIDE)
    mu = tl.load(mean + c, mask=inside, other=0.0)
    spread = tl.load(var + c, mask=inside, other=1.0)
    high, low, scale, shift, rstd = terms_of(mu, spread, gamma, beta, c, channels, eps, GAMMA, BETA, WIDE)
    if ACTIVATION != NO_ACTIVATION:
        pre = before_activation(v, high[None, :], low[None, :], scale[None, :], shift[None, :])
        if SOURCE != FROM_X:
            other = elements(saved, places(k, c, saved_outer, saved_channel, inner_v, VEC, LANES), here, WIDE)
            pre = pre + other if SOURCE == FROM_RESIDUAL else other
        g = act_gradient(g, pre, ACTIVATION, SLOPE)
    m = count.to(tl.float64)
    inner = tl.where(here, g, 0.0).to(tl.float64)
    total = tl.sum(inner, 0)
    product = tl.sum(inner * (v.to(tl.float64) - mu[None, :]), 0) * rstd
    tl.store(dbeta + c, rounded(total, dbeta), mask=inside)
    tl.store(dgamma + c, rounded(product, dgamma), mask=inside)
    through = total / m
    top = through.to(WIDE)
    rest = (through - top.to(tl.float64)).to(WIDE)
    direct = (g - top[None, :]) - rest[None, :]
    b = (scale.to(tl.float64) * rstd * (product / (m - correction))).to(WIDE)
    variance = centred(v, high[None, :], low[None, :]) * b[None, :]
    to = places(k, c, dx_outer, dx_channel, inner_v, VEC, LANES)
    tl.store(dx + to, tl.fma(direct, scale[None, :], -variance).to(dx.dtype.element_ty), mask=here)
    if DRESIDUAL:
        tl.store(dresidual + to, g.to(dx.dtype.element_ty), mask=here)
