"""The elementwise maps: y = act(pre), and dx.

Blocks run in reverse order, since what the sums have read last is still in the cache.
"""

import triton
import triton.language as tl

from xhat.torch.gpu.formulas import act, before_activation, centred, elements, loaded_terms, places, sizes
from xhat.torch.gpu.sums import gradient_at, kernel

__all__ = ["input_gradient", "normalize"]


@triton.jit
def block_of(blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The elements and the channels of this program; channels are the faster index."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block = program // blocks
    return block * ROWS + tl.arange(0, ROWS), (program - block * blocks) * COLUMNS + tl.arange(0, COLUMNS)


@kernel
def normalize(
    x, residual, y, terms, count_v, channels_v, x_outer, x_channel, residual_outer, residual_channel, y_outer,
    y_channel, inner_v, blocks, VEC: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr,
    SLOPE: tl.constexpr, RESIDUAL: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """y = act((x - mu) scale + beta [+ residual])."""
    count, channels = sizes(count_v, channels_v, VEC, LANES)
    k, c = block_of(blocks, ROWS, COLUMNS)
    here = (k < count)[:, None] & (c < channels)[None, :]
    high, low, scale, beta = loaded_terms(terms, c, channels)
    v = elements(x, places(k, c, x_outer, x_channel, inner_v, VEC, LANES), here, WIDE)
    pre = before_activation(v, high, low, scale, beta)
    if RESIDUAL:
        pre += elements(
            residual, places(k, c, residual_outer, residual_channel, inner_v, VEC, LANES), here, WIDE
        )
    to = y + places(k, c, y_outer, y_channel, inner_v, VEC, LANES)
    tl.store(to, act(pre, ACTIVATION, SLOPE).to(y.dtype.element_ty), mask=here)


@kernel
def input_gradient(
    dy, x, saved, w, dx, dresidual, factors, count_v, channels_v, dy_outer, dy_channel, x_outer, x_channel,
    saved_outer, saved_channel, dx_outer, dx_channel, inner_v, blocks, VEC: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SOURCE: tl.constexpr, WEIGHTED: tl.constexpr,
    DRESIDUAL: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """dx = scale (g - w sum g / m) - w (x - mu) b,  b = scale rstd sum(g xhat) / (m - c); and dresidual = g.

    factors (7, C): the terms of the forward pass, then sum g / m in two halves, and b. The mean of g is subtracted
    before anything is scaled, so an offset of dy costs no digits.
    """
    count, channels = sizes(count_v, channels_v, VEC, LANES)
    k, c = block_of(blocks, ROWS, COLUMNS)
    inside = c < channels
    here = (k < count)[:, None] & inside[None, :]
    weight = tl.load(w + k, mask=k < count, other=0.0)[:, None].to(WIDE) if WEIGHTED else 1.0
    high, low, scale, beta = loaded_terms(factors, c, channels)
    g, v = gradient_at(
        dy, x, saved, high, low, scale, beta, k, c, count, channels, dy_outer, dy_channel, x_outer, x_channel,
        saved_outer, saved_channel, inner_v, weight, VEC, ACTIVATION, SLOPE, SOURCE, WEIGHTED, WIDE, LANES,
    )  # fmt: skip
    top = tl.load(factors + 4 * channels + c, mask=inside, other=0.0)[None, :]
    rest = tl.load(factors + 5 * channels + c, mask=inside, other=0.0)[None, :]
    b = tl.load(factors + 6 * channels + c, mask=inside, other=0.0)[None, :]
    direct = tl.fma(-weight, rest, tl.fma(-weight, top, g)) if WEIGHTED else (g - top) - rest
    variance = centred(v, high, low) * b
    if WEIGHTED:
        variance *= weight
    to = places(k, c, dx_outer, dx_channel, inner_v, VEC, LANES)
    tl.store(dx + to, tl.fma(direct, scale, -variance).to(dx.dtype.element_ty), mask=here)
    if DRESIDUAL:
        tl.store(dresidual + to, g.to(dx.dtype.element_ty), mask=here)
