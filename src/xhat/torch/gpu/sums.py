"""The reductions over elements: a program sums a block of channels over one split of the elements.

Splits and tiles follow from the shape alone and parts are merged in the order of their index, without atomics, so a
result has the same bits run after run and on every card.

Each slot of a tile sums about an origin of its own, the first element that it meets: differences are then small
whatever the mean is. float32 sums in float64 from the first term; 16-bit elements sum TERMS terms in float32 first.
"""

import triton
import triton.language as tl

from xhat.torch.gpu.formulas import (
    FROM_RESIDUAL,
    FROM_X,
    NO_ACTIVATION,
    act_gradient,
    before_activation,
    centred,
    counted,
    elements,
    folded,
    part,
    places,
    sizes,
    terms_of,
)

__all__ = ["SIZES", "gradient_at", "gradient_sums", "kernel", "moments"]

# One compilation serves all sizes: a size of 1 would become a constant, and a multiple of 16 another variant.
_STRIDED = ("x", "dy", "saved", "y", "residual", "dx")
SIZES = ("count_v", "channels_v", "channels", "inner_v", "per_v", "splits", "blocks",
         *(f"{name}_{axis}" for name in _STRIDED for axis in ("outer", "channel")))  # fmt: skip


def kernel(function):
    """A Triton kernel that is compiled once for all sizes. Its first arguments, up to the first size, are tensors."""
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    sizes = [name for name in arguments if name in SIZES]
    made = triton.jit(do_not_specialize=sizes)(function)
    made.tensors = arguments.index(sizes[0])
    return made


@triton.jit
def store_part(to, m, mu, m2, inside, channels):
    """The moments of a split."""
    tl.store(to, m, mask=inside)
    tl.store(to + channels, mu, mask=inside)
    tl.store(to + 2 * channels, m2, mask=inside)


@kernel
def moments(
    x, w, parts, count_v, channels_v, x_outer, x_channel, inner_v, per_v, VEC: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TERMS: tl.constexpr, WEIGHTED: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """parts (splits, 3, C): m, mean and m2 of the elements of a split of each channel."""
    SUM: tl.constexpr = tl.float64 if TERMS == 1 else tl.float32
    c, split = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(1)
    _, channels = sizes(count_v, channels_v, VEC, LANES)
    first, last = part(split, per_v, count_v, VEC, LANES)
    inside = (c < channels)[None, :]
    k = first + tl.arange(0, ROWS)
    origin = elements(
        x, places(k, c, x_outer, x_channel, inner_v, VEC, LANES), (k < last)[:, None] & inside, SUM
    )
    s = tl.zeros((ROWS, COLUMNS), tl.float64)
    q = tl.zeros((ROWS, COLUMNS), tl.float64)
    m = tl.zeros((ROWS, 1), tl.float64)
    for _ in range(first, last, ROWS * TERMS):
        s_terms = tl.zeros((ROWS, COLUMNS), SUM)
        q_terms = tl.zeros((ROWS, COLUMNS), SUM)
        for _t in tl.static_range(TERMS):
            here = (k < last)[:, None] & inside
            v = elements(x, places(k, c, x_outer, x_channel, inner_v, VEC, LANES), here, SUM)
            weight = tl.load(w + k, mask=k < last, other=0.0)[:, None] if WEIGHTED else 1.0
            if WEIGHTED:
                origin = tl.where((m > 0) | (weight == 0), origin, v)
                here &= weight > 0
                m += weight
            d = tl.where(here, v - origin, 0.0)
            s_terms += weight * d
            q_terms = tl.fma(weight * d, d, q_terms)
            k += ROWS
        s += s_terms
        q += q_terms
    if not WEIGHTED:
        m = counted(first + tl.arange(0, ROWS), last, ROWS)[:, None]
    m = tl.broadcast_to(m, (ROWS, COLUMNS))
    total, mu, m2 = folded(m, tl.where(m > 0, origin.to(tl.float64), 0.0), s, q)
    store_part(parts + split * 3 * channels + c, total, mu, m2, c < channels, channels)


@triton.jit
def gradient_at(
    dy, x, saved, high, low, scale, beta, k, c, last, channels, dy_outer, dy_channel, x_outer, x_channel,
    saved_outer, saved_channel, inner_v, weight, VEC: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    SOURCE: tl.constexpr, WEIGHTED: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """g = dy act'(pre) and x of a tile; where the weight is 0 and dy is 0, mu stands for x, which may be NaN there."""
    here = (k < last)[:, None] & (c < channels)[None, :]
    g = elements(dy, places(k, c, dy_outer, dy_channel, inner_v, VEC, LANES), here, WIDE)
    v = elements(x, places(k, c, x_outer, x_channel, inner_v, VEC, LANES), here, WIDE)
    if WEIGHTED:
        v = tl.where((weight == 0) & (g == 0), high, v)
    if ACTIVATION != NO_ACTIVATION:
        pre = before_activation(v, high, low, scale, beta)
        if SOURCE != FROM_X:
            other = elements(saved, places(k, c, saved_outer, saved_channel, inner_v, VEC, LANES), here, WIDE)
            pre = pre + other if SOURCE == FROM_RESIDUAL else other  # y has pre's sign
            if WEIGHTED:
                pre = tl.where((weight == 0) & (g == 0), 0.0, pre)
        g = act_gradient(g, pre, ACTIVATION, SLOPE)
    return g, v


@kernel
def gradient_sums(
    dy, x, saved, w, parts, mean, var, gamma, beta, count_v, channels_v, dy_outer, dy_channel, x_outer, x_channel,
    saved_outer, saved_channel, inner_v, per_v, eps: tl.float64, VEC: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TERMS: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, SOURCE: tl.constexpr,
    WEIGHTED: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """parts (splits, 2, C): sum g and sum g (x - mu) of each split."""
    SUM: tl.constexpr = tl.float64 if TERMS == 1 else tl.float32
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    _, channels = sizes(count_v, channels_v, VEC, LANES)
    first, last = part(split, per_v, count_v, VEC, LANES)
    k = first + tl.arange(0, ROWS)
    mu = tl.load(mean + c, mask=c < channels, other=0.0)
    spread = tl.load(var + c, mask=c < channels, other=1.0)
    high, low, scale, shift, _ = terms_of(mu, spread, gamma, beta, c, channels, eps, GAMMA, BETA, WIDE)
    high, low, scale, shift = high[None, :], low[None, :], scale[None, :], shift[None, :]
    s = tl.zeros((ROWS, COLUMNS), tl.float64)
    q = tl.zeros((ROWS, COLUMNS), tl.float64)
    for _ in range(first, last, ROWS * TERMS):
        s_terms = tl.zeros((ROWS, COLUMNS), SUM)
        q_terms = tl.zeros((ROWS, COLUMNS), SUM)
        for _t in tl.static_range(TERMS):
            weight = tl.load(w + k, mask=k < last, other=0.0)[:, None] if WEIGHTED else 1.0
            g, v = gradient_at(
                dy, x, saved, high, low, scale, shift, k, c, last, channels, dy_outer, dy_channel, x_outer, x_channel,
                saved_outer, saved_channel, inner_v, weight, VEC, ACTIVATION, SLOPE, SOURCE, WEIGHTED, WIDE, LANES,
            )  # fmt: skip
            # In float64 x - mu has no rounding, of which an offset of dy would be a factor.
            d = v.to(SUM) - mu[None, :] if TERMS == 1 else centred(v, high, low)
            g = tl.where(k[:, None] < last, g, 0.0).to(SUM)
            s_terms += g
            q_terms = tl.fma(g, d, q_terms)
            k += ROWS
        s += s_terms
        q += q_terms
    to = parts + split * 2 * channels + c
    tl.store(to, tl.sum(s, 0), mask=c < channels)
    tl.store(to + channels, tl.sum(q, 0), mask=c < channels)
