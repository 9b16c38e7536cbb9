"""A batch norm as a careful NumPy user writes it with Numba: parallel, in as few sweeps as plain loops allow.

Both layouts sum once, shifted by the first value of each channel, in float32 that is folded into float64 (per
row in NCHW, per block of rows in NHWC), and write y or dx in a second sweep, with results preallocated. NCHW
is parallel over channels, so that a channel's second sweep finds it in the caches; NHWC over blocks of rows.
"""

from typing import Any

import numba
import numpy as np
from numba import njit, prange

from benchmarks.harness.contest import Contestant
from benchmarks.harness.problem import EPS, Array, Problem

__all__ = ["contestants"]

BLOCK = 64  # rows that are summed in float32 before they are folded
OPTIONS: dict[str, Any] = {"parallel": True, "fastmath": True, "cache": True}


@njit(**OPTIONS)  # type: ignore[untyped-decorator, unused-ignore]
def forward_rows(x: Array, gamma: Array, beta: Array, eps: float, y: Array, mean: Array, rstd: Array) -> None:
    """x, y (N, C, S)."""
    rows, channels, width = x.shape
    for c in prange(channels):
        shift = x[0, c, 0]
        total, squares = np.float64(0), np.float64(0)
        for n in range(rows):
            row_total, row_squares = np.float32(0), np.float32(0)
            for s in range(width):
                d = x[n, c, s] - shift
                row_total += d
                row_squares += d * d
            total += row_total
            squares += row_squares
        m = rows * width
        mean[c] = shift + total / m
        rstd[c] = 1 / np.sqrt(squares / m - (total / m) ** 2 + eps)
        scale = np.float32(gamma[c] * rstd[c])
        offset = np.float32(beta[c] - mean[c] * gamma[c] * rstd[c])
        for n in range(rows):
            for s in range(width):
                y[n, c, s] = x[n, c, s] * scale + offset


@njit(**OPTIONS)  # type: ignore[untyped-decorator, unused-ignore]
def backward_rows(
    x: Array, dy: Array, gamma: Array, mean: Array, rstd: Array, dx: Array, dgamma: Array, dbeta: Array
) -> None:
    """x, dy, dx (N, C, S)."""
    rows, channels, width = x.shape
    for c in prange(channels):
        mu = np.float32(mean[c])
        sum_dy, sum_product = np.float64(0), np.float64(0)
        for n in range(rows):
            row_dy, row_product = np.float32(0), np.float32(0)
            for s in range(width):
                row_dy += dy[n, c, s]
                row_product += dy[n, c, s] * (x[n, c, s] - mu)
            sum_dy += row_dy
            sum_product += row_product
        m = rows * width
        dbeta[c] = sum_dy
        dgamma[c] = sum_product * rstd[c]
        scale = np.float32(gamma[c] * rstd[c])
        slope = np.float32(-gamma[c] * rstd[c] ** 3 * sum_product / m)
        offset = np.float32(-gamma[c] * rstd[c] * sum_dy / m) - slope * mu
        for n in range(rows):
            for s in range(width):
                dx[n, c, s] = dy[n, c, s] * scale + x[n, c, s] * slope + offset


@njit(**OPTIONS)  # type: ignore[untyped-decorator, unused-ignore]
def forward_columns(
    x: Array, gamma: Array, beta: Array, eps: float, y: Array, mean: Array, rstd: Array, chunks: int
) -> None:
    """x, y (M, C)."""
    rows, channels = x.shape
    share = (rows + chunks - 1) // chunks
    totals, squares = np.zeros((chunks, channels)), np.zeros((chunks, channels))
    for t in prange(chunks):
        part, part_squares = np.empty(channels, np.float32), np.empty(channels, np.float32)
        for start in range(t * share, min((t + 1) * share, rows), BLOCK):
            part[:] = 0
            part_squares[:] = 0
            for i in range(start, min(start + BLOCK, (t + 1) * share, rows)):
                for c in range(channels):
                    d = x[i, c] - x[0, c]
                    part[c] += d
                    part_squares[c] += d * d
            totals[t] += part
            squares[t] += part_squares
    total, square = totals.sum(0) / rows, squares.sum(0) / rows
    scale, offset = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for c in range(channels):
        mean[c] = x[0, c] + total[c]
        rstd[c] = 1 / np.sqrt(square[c] - total[c] ** 2 + eps)
        scale[c] = gamma[c] * rstd[c]
        offset[c] = beta[c] - mean[c] * gamma[c] * rstd[c]
    for t in prange(chunks):
        for i in range(t * share, min((t + 1) * share, rows)):
            for c in range(channels):
                y[i, c] = x[i, c] * scale[c] + offset[c]


@njit(**OPTIONS)  # type: ignore[untyped-decorator, unused-ignore]
def backward_columns(
    x: Array,
    dy: Array,
    gamma: Array,
    mean: Array,
    rstd: Array,
    dx: Array,
    dgamma: Array,
    dbeta: Array,
    chunks: int,
) -> None:
    """x, dy, dx (M, C)."""
    rows, channels = x.shape
    share = (rows + chunks - 1) // chunks
    sums, products = np.zeros((chunks, channels)), np.zeros((chunks, channels))
    mu = mean.astype(np.float32)
    for t in prange(chunks):
        part, part_product = np.empty(channels, np.float32), np.empty(channels, np.float32)
        for start in range(t * share, min((t + 1) * share, rows), BLOCK):
            part[:] = 0
            part_product[:] = 0
            for i in range(start, min(start + BLOCK, (t + 1) * share, rows)):
                for c in range(channels):
                    part[c] += dy[i, c]
                    part_product[c] += dy[i, c] * (x[i, c] - mu[c])
            sums[t] += part
            products[t] += part_product
    sum_dy, sum_product = sums.sum(0), products.sum(0)
    scale, slope, offset = np.empty((3, channels), np.float32)
    for c in range(channels):
        dbeta[c] = sum_dy[c]
        dgamma[c] = sum_product[c] * rstd[c]
        scale[c] = gamma[c] * rstd[c]
        slope[c] = -gamma[c] * rstd[c] ** 3 * sum_product[c] / rows
        offset[c] = -gamma[c] * rstd[c] * sum_dy[c] / rows - slope[c] * mu[c]
    for t in prange(chunks):
        for i in range(t * share, min((t + 1) * share, rows)):
            for c in range(channels):
                dx[i, c] = dy[i, c] * scale[c] + x[i, c] * slope[c] + offset[c]


def contestants(problem: Problem) -> list[Contestant]:
    """The float32 problems; Numba knows no bfloat16."""
    if problem.case.dtype != "float32":
        return []
    channels = problem.gamma.size
    last = problem.case.axis == problem.x.ndim - 1
    shape = (-1, channels) if last else (problem.x.shape[0], channels, -1)
    x, dy = problem.x.reshape(shape), problem.dy.reshape(shape)
    y, dx = np.empty_like(problem.x), np.empty_like(problem.x)
    mean, rstd, dgamma, dbeta = np.empty((4, channels))
    gamma, beta = problem.gamma, problem.beta
    forth, back = forward_rows, backward_rows
    more: tuple[int, ...] = ()
    if last:
        chunks = max(1, min(4 * numba.get_num_threads(), len(x) // BLOCK))
        forth, back, more = forward_columns, backward_columns, (chunks,)
    flat_y, flat_dx = y.reshape(shape), dx.reshape(shape)

    def forward() -> tuple[Any, ...]:
        forth(x, gamma, beta, EPS, flat_y, mean, rstd, *more)
        return (y,)

    def backward() -> tuple[Any, ...]:
        back(x, dy, gamma, mean, rstd, flat_dx, dgamma, dbeta, *more)
        return dx, dgamma, dbeta

    forward()
    calls = {"forward": forward, "backward": backward, "both": lambda: (*forward(), *backward())}
    outputs = {"forward": (y,), "backward": (dx, dgamma, dbeta), "both": (y, dx, mean, rstd, dgamma, dbeta)}
    return [Contestant("numba", calls, outputs=outputs)]
