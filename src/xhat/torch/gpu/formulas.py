"""What the kernels compute at one element, and where an element is. Triton functions; every formula is written once.

A tile has elements k (dimension 0) of channels c (dimension 1). Strides and sizes come divided by VEC: their product
with a constant shows the compiler that VEC elements can be loaded at once.
"""

import triton
import triton.language as tl

from xhat.torch.gpu.proved import merge, silu_slope, track

__all__ = [
    "BY_MOMENTUM",
    "CUMULATIVE",
    "FROM_RESIDUAL",
    "FROM_X",
    "FROM_Y",
    "LEAKY_RELU",
    "NOT_MOVED",
    "NO_ACTIVATION",
    "SILU",
    "act",
    "act_gradient",
    "before_activation",
    "centred",
    "counted",
    "elements",
    "folded",
    "loaded_terms",
    "merged",
    "move_running",
    "part",
    "places",
    "rounded",
    "sizes",
    "terms_of",
]

NO_ACTIVATION, LEAKY_RELU, SILU = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
FROM_X, FROM_Y, FROM_RESIDUAL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # how a backward finds pre
NOT_MOVED, BY_MOMENTUM, CUMULATIVE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # running statistics


@triton.jit
def places(k, c, outer_v, channel_v, inner_v, VEC: tl.constexpr, LANES: tl.constexpr):
    """Offsets of the elements k of channels c, k = n inner + i; in columns the channel stride is 1 and inner is 1."""
    if LANES:
        inner = inner_v * VEC
        n = k // inner
        inside = n.to(tl.int64) * (outer_v * VEC) + (k - n * inner)
        return inside[:, None] + (c.to(tl.int64) * (channel_v * VEC))[None, :]
    return k.to(tl.int64)[:, None] * (outer_v * VEC) + c[None, :]


@triton.jit
def sizes(count_v, channels_v, VEC: tl.constexpr, LANES: tl.constexpr):
    """Elements of a channel, and channels: VEC divides the one that is contiguous."""
    if LANES:
        return count_v * VEC, channels_v
    return count_v, channels_v * VEC


@triton.jit
def part(split, per_v, count_v, VEC: tl.constexpr, LANES: tl.constexpr):
    """The first element of a split, and the one behind its last."""
    if LANES:
        return split * per_v * VEC, tl.minimum((split + 1) * per_v, count_v) * VEC
    return split * per_v, tl.minimum((split + 1) * per_v, count_v)


@triton.jit
def elements(x, at, here, WIDE: tl.constexpr):
    """The elements of a tile in the dtype of the arithmetic; 0 outside."""
    return tl.load(x + at, mask=here, other=0.0).to(WIDE)


@triton.jit
def loaded_terms(terms, c, channels):
    """mean (in two halves), scale and beta of channels c."""
    inside = c < channels
    high = tl.load(terms + c, mask=inside, other=0.0)[None, :]
    low = tl.load(terms + channels + c, mask=inside, other=0.0)[None, :]
    scale = tl.load(terms + 2 * channels + c, mask=inside, other=0.0)[None, :]
    beta = tl.load(terms + 3 * channels + c, mask=inside, other=0.0)[None, :]
    return high, low, scale, beta


@triton.jit
def terms_of(
    mu, var, gamma, beta, c, channels, eps, GAMMA: tl.constexpr, BETA: tl.constexpr, WIDE: tl.constexpr
):
    """mean in two halves, gamma rstd, and beta, in the dtype of the maps; and rstd in float64."""
    inside = c < channels
    rstd = 1 / tl.sqrt(var + eps)
    scale = rstd
    if GAMMA:
        scale *= tl.load(gamma + c, mask=inside, other=0.0).to(tl.float64)
    shift = tl.load(beta + c, mask=inside, other=0.0).to(WIDE) if BETA else tl.zeros_like(mu).to(WIDE)
    high = mu.to(WIDE)
    return high, (mu - high.to(tl.float64)).to(WIDE), scale.to(WIDE), shift, rstd


@triton.jit
def centred(x, high, low):
    """x - mu: the first difference is exact where x is near mu, so a large mean costs no digits."""
    return (x - high) - low


@triton.jit
def before_activation(x, high, low, scale, beta):
    """gamma xhat + beta. Fused by hand: the backward pass has to find the same bits, or relu changes sides."""
    return tl.fma(centred(x, high, low), scale, beta)


@triton.jit
def act(pre, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """act(pre)."""
    if ACTIVATION == LEAKY_RELU:
        return tl.where(pre <= 0, 0.0 if SLOPE == 0 else pre * SLOPE, pre)  # 0 times -inf is NaN
    elif ACTIVATION == SILU:
        return pre / (1 + tl.exp(-pre))
    else:
        return pre


@triton.jit
def act_gradient(dy, pre, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """dy act'(pre)."""
    if ACTIVATION == LEAKY_RELU:
        return tl.where(pre <= 0, dy * SLOPE, dy)
    elif ACTIVATION == SILU:
        return dy * silu_slope(pre, 1 / (1 + tl.exp(-pre)))
    else:
        return dy


@triton.jit
def merged(ma, mu_a, m2_a, mb, mu_b, m2_b):
    """`merge` of two parts, either of which may be empty."""
    m, mu, m2 = merge(ma, mu_a, m2_a, mb, mu_b, m2_b)
    some = m > 0
    return m, tl.where(some, mu, 0.0), tl.where(some, m2, 0.0)


@triton.jit
def counted(first, last, step):
    """How many of first, first + step, ... lie before last."""
    return (tl.maximum(last - first + (step - 1), 0) // step).to(tl.float64)


@triton.jit
def folded(m, origin, s, q):
    """m, mean and m2 of the slots of a tile together, each with its sums of d and d^2, d = x - origin.

        mu = sum(m origin + s) / m      m2 = sum(q + e (2 s + m e)),  e = origin - mu

    Unlike a tree of merges it has one division a channel.
    """
    total = tl.sum(m, 0)
    mu = tl.sum(m * origin + s, 0) / tl.where(total > 0, total, 1.0)
    e = origin - mu[None, :]
    return total, mu, tl.sum(q + e * (s + s + m * e), 0)


@triton.jit
def rounded(value, pointer):
    """A float64 in the dtype that the pointer is of, by way of float32 for 16 bits."""
    dtype: tl.constexpr = pointer.dtype.element_ty
    if dtype == tl.float64:
        return value
    return value.to(tl.float32).to(dtype)


@triton.jit
def move_running(running_mean, running_var, batches, mu, var, c, inside, weight, factor, MOVED: tl.constexpr):
    """running += weight (batch - running) of mu and of factor var; CUMULATIVE: weight = 1 / (batches + 1)."""
    if MOVED != NOT_MOVED:
        if MOVED == CUMULATIVE:
            weight = 1 / (tl.load(batches) + 1).to(tl.float64)
        old = tl.load(running_mean + c, mask=inside, other=0.0).to(tl.float64)
        tl.store(running_mean + c, rounded(track(old, mu, weight), running_mean), mask=inside)
        old = tl.load(running_var + c, mask=inside, other=0.0).to(tl.float64)
        tl.store(running_var + c, rounded(track(old, factor * var, weight), running_var), mask=inside)
