"""What is done once a channel: parts are merged in the order of their index, and the factors of the maps are made.

Roots and divisions are in float64 here, where they are IEEE's and cost nothing.
"""

import triton
import triton.language as tl

from xhat.torch.gpu.formulas import merged, move_running, rounded, terms_of
from xhat.torch.gpu.proved import variance
from xhat.torch.gpu.sums import kernel

__all__ = ["merge_gradient_sums", "merge_moments", "track"]


@triton.jit
def store_terms(terms, mu, var, gamma, beta, c, channels, eps, GAMMA: tl.constexpr, BETA: tl.constexpr):
    inside = c < channels
    high, low, scale, shift, _ = terms_of(
        mu, var, gamma, beta, c, channels, eps, GAMMA, BETA, terms.dtype.element_ty
    )
    tl.store(terms + c, high, mask=inside)
    tl.store(terms + channels + c, low, mask=inside)
    tl.store(terms + 2 * channels + c, scale, mask=inside)
    tl.store(terms + 3 * channels + c, shift, mask=inside)


@kernel
def merge_moments(
    parts, mean, var, terms, gamma, beta, running_mean, running_var, batches, channels, splits, m: tl.float64,
    correction: tl.float64, eps: tl.float64, weight: tl.float64, factor: tl.float64, STEP: tl.constexpr,
    COLUMNS: tl.constexpr, GIVEN: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr, MOVED: tl.constexpr,
):  # fmt: skip
    """mean and var (C) of all parts, and terms (4, C); GIVEN: mean and var are read, there are no parts.

    MOVED: whether and how the running statistics follow.
    """
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < channels
    if GIVEN:
        mu = tl.load(mean + c, mask=inside, other=0.0).to(tl.float64)
        v = tl.load(var + c, mask=inside, other=1.0).to(tl.float64)
    else:
        count = tl.zeros((STEP, COLUMNS), tl.float64)
        mus = tl.zeros((STEP, COLUMNS), tl.float64)
        m2s = tl.zeros((STEP, COLUMNS), tl.float64)
        for first in range(0, splits, STEP):
            p = first + tl.arange(0, STEP)
            here = (p < splits)[:, None] & inside[None, :]
            at = parts + p[:, None] * 3 * channels + c[None, :]
            count, mus, m2s = merged(
                count,
                mus,
                m2s,
                tl.load(at, mask=here, other=0.0),
                tl.load(at + channels, mask=here, other=0.0),
                tl.load(at + 2 * channels, mask=here, other=0.0),
            )
        _, mu, m2 = tl.reduce((count, mus, m2s), 0, merged)
        v = variance(m2, m, correction)
        tl.store(mean + c, mu, mask=inside)
        tl.store(var + c, v, mask=inside)
        move_running(running_mean, running_var, batches, mu, v, c, inside, weight, factor, MOVED)
    store_terms(terms, mu, v, gamma, beta, c, channels, eps, GAMMA, BETA)


@kernel
def merge_gradient_sums(
    parts, given, mean, var, factors, gamma, beta, dgamma, dbeta, channels, splits, m: tl.float64,
    correction: tl.float64, eps: tl.float64, STEP: tl.constexpr, COLUMNS: tl.constexpr, GIVEN: tl.constexpr,
    BATCH: tl.constexpr, GAMMA: tl.constexpr, BETA: tl.constexpr,
):  # fmt: skip
    """dgamma = sum g xhat and dbeta = sum g in their dtypes, and factors (7, C): see `maps.input_gradient`.

    GIVEN: both sums (2, C) are read from `given`. BATCH: the statistics are the batch's own, so dx
    has terms through them.
    """
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < channels
    mu = tl.load(mean + c, mask=inside, other=0.0)
    spread = tl.load(var + c, mask=inside, other=1.0)
    rstd = 1 / tl.sqrt(spread + eps)
    if GIVEN:
        total = tl.load(given + c, mask=inside, other=0.0)
        product = tl.load(given + channels + c, mask=inside, other=0.0)
    else:
        s = tl.zeros((STEP, COLUMNS), tl.float64)
        q = tl.zeros((STEP, COLUMNS), tl.float64)
        for first in range(0, splits, STEP):
            p = first + tl.arange(0, STEP)
            here = (p < splits)[:, None] & inside[None, :]
            at = parts + p[:, None] * 2 * channels + c[None, :]
            s += tl.load(at, mask=here, other=0.0)
            q += tl.load(at + channels, mask=here, other=0.0)
        total = tl.sum(s, 0)
        product = tl.sum(q, 0) * rstd
        tl.store(dbeta + c, rounded(total, dbeta), mask=inside)
        tl.store(dgamma + c, rounded(product, dgamma), mask=inside)
    scale = rstd
    if GAMMA:
        scale *= tl.load(gamma + c, mask=inside, other=0.0).to(tl.float64)
    dtype: tl.constexpr = factors.dtype.element_ty
    store_terms(factors, mu, spread, gamma, beta, c, channels, eps, GAMMA, BETA)
    through_mean = total / m if BATCH else tl.zeros_like(total)
    through_var = scale * rstd * (product / (m - correction)) if BATCH else tl.zeros_like(total)
    high = through_mean.to(dtype)
    tl.store(factors + 4 * channels + c, high, mask=inside)
    tl.store(factors + 5 * channels + c, (through_mean - high.to(tl.float64)).to(dtype), mask=inside)
    tl.store(factors + 6 * channels + c, through_var.to(dtype), mask=inside)


@kernel
def track(
    running_mean, running_var, batches, mean, var, count, channels, weight: tl.float64, factor: tl.float64,
    correction: tl.float64, running_correction: tl.float64, COLUMNS: tl.constexpr, MOVED: tl.constexpr,
    COUNTED: tl.constexpr,
):  # fmt: skip
    """The running statistics follow a mean and var that were computed before: those of many ranks, or of a graph.

    COUNTED: m is read from `count`, and factor = (m - correction) / (m - running_correction); m = 0 moves nothing.
    """
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < channels
    if COUNTED:
        m = tl.load(count + 0 * c)  # a scalar in every lane
        factor = (m - correction) / (m - running_correction)
        inside = inside & (m > 0)
    mu = tl.load(mean + c, mask=inside, other=0.0)
    v = tl.load(var + c, mask=inside, other=0.0)
    move_running(running_mean, running_var, batches, mu, v, c, inside, weight, factor, MOVED)
