"""Batch norm as kernels compute it: float32 arithmetic on (C, m) arrays, with the faults that kernels have.

Each `Stats` gives the mean and the variance of every channel, each `Sum` the sum, in float32.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from xhat.lens.checker.expected.probes import rounded

Array = np.ndarray[Any, Any]
Sum = Callable[[Array], Array]
Stats = Callable[[Array], tuple[Array, Array]]
single = np.float32


def in_order(values: Array) -> Array:
    """A plain loop: the least accurate sum."""
    return np.cumsum(values, axis=1, dtype=single)[:, -1]


def pairwise(values: Array) -> Array:
    return values.sum(axis=1, dtype=single)


def first(count: int) -> Sum:
    """A sum that never reaches its second block."""
    return lambda values: pairwise(values[:, :count])


def two_passes(total: Sum) -> Stats:
    def stats(x: Array) -> tuple[Array, Array]:
        m = single(x.shape[1])
        mu = total(x) / m
        return mu, total((x - mu[:, None]) ** 2) / m

    return stats


def one_pass(x: Array) -> tuple[Array, Array]:
    m = single(x.shape[1])
    mu = pairwise(x) / m
    return mu, pairwise(x * x) / m - mu * mu


def welford(x: Array) -> tuple[Array, Array]:
    mu, m2 = np.zeros((2, len(x)), single)
    for i, column in enumerate(x.T):
        delta = column - mu
        mu = mu + delta / single(i + 1)
        m2 = m2 + delta * (column - mu)
    return mu, m2 / single(x.shape[1])


def kernel(
    case: dict[str, Array], stats: Stats, total: Sum, *, folded: bool = False, mean_path: bool = True
) -> dict[str, Array]:
    """Everything that a kernel gives for x, dy, gamma, beta and eps of a case; x and dy are (C, m)."""
    x, dy, gamma, beta = (np.asarray(case[name], single) for name in ("x", "dy", "gamma", "beta"))
    m = single(x.shape[1])
    with np.errstate(all="ignore"):
        mu, var = stats(x)
        rstd = single(1) / np.sqrt(var + single(case["eps"]))
        xhat = (x - mu[:, None]) * rstd[:, None]
        scale = gamma * rstd
        y = (
            x * scale[:, None] + (beta - mu * scale)[:, None]
            if folded
            else gamma[:, None] * xhat + beta[:, None]
        )
        dbeta, dgamma = total(dy), total(dy * xhat)
        mean = dbeta[:, None] / m if mean_path else single(0)
        dx = scale[:, None] * (dy - mean - xhat * dgamma[:, None] / m)
    return {"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta, "mean": mu, "var": var, "rstd": rstd}


def saved(values: Any, dtype: str) -> Any:
    """Rounded, as a dump of this dtype has it; bfloat16 as its bits."""
    values = rounded(np.asarray(values, np.float64), dtype)
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(dtype)


def inputs(m: int, distance: float = 1.0, dtype: str = "float32", channels: int = 5) -> dict[str, Any]:
    """x, dy, gamma, beta and eps of a case as numbers; x is (C, m), `distance` deviations from 0."""
    rng = np.random.default_rng(m)
    x = distance + rng.standard_normal((channels, m)) * rng.uniform(0.5, 2, (channels, 1))
    dy = rng.standard_normal((channels, m)) + rng.uniform(-1, 1, (channels, 1))
    gamma, beta = rng.uniform(0.5, 2, channels), rng.uniform(-2, 2, channels)
    case = {"x": rounded(x, dtype), "dy": rounded(dy, dtype), "eps": 1e-5}
    return case | {"gamma": rounded(gamma, "float32"), "beta": rounded(beta, "float32")}


def dumped(case: dict[str, Any], results: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """The dump of a case with results, of the layout CN."""
    arrays = {
        name: saved(value, dtype)
        for name, value in (case | results).items()
        if name in ("x", "dy", "y", "dx")
    }
    rest = {
        name: np.asarray(value, np.float32) for name, value in (case | results).items() if name not in arrays
    }
    return rest | arrays | {"eps": case["eps"], "layout": "CN"}
