"""Wrong implementations, made from the text of a right one: each mistake is an edit of some of its lines.

The edits do not depend on how the checker works.
"""

from collections.abc import Callable
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

PROGRAM = """
def forward(x, gamma, beta, eps, running_mean, running_var, momentum=0.1):
    n = x.shape[0]
    mu = x.sum(axis=0) / n
    xmu = x - mu
    sq = xmu ** 2
    var = sq.sum(axis=0) / n
    running_mean[:] = (1 - momentum) * running_mean + momentum * mu
    running_var[:] = (1 - momentum) * running_var + momentum * var * n / (n - 1)
    use_mean, use_var = mu, var
    sqrtvar = np.sqrt(use_var + eps)
    xhat = (x - use_mean) / sqrtvar
    scaled = gamma * xhat
    y = scaled + beta
    return y, (x, xhat, gamma, x - use_mean, use_var, sqrtvar, eps)


def backward(dy, cache):
    x, xhat, gamma, xmu, var, sqrtvar, eps = cache
    n = dy.shape[0]
    rstd = 1 / sqrtvar
    dgamma = (dy * xhat).sum(axis=0)
    dbeta = dy.sum(axis=0)
    dxhat = gamma * dy
    through_direct = dxhat * rstd
    through_mean = -(dxhat.sum(axis=0) * rstd) / n
    through_variance = -0.5 * (dxhat * xmu).sum(axis=0) * rstd ** 3 * 2 * xmu / n
    dx = through_direct + through_mean + through_variance
    return dx, dgamma, dbeta
"""

MU, VAR = "    mu = x.sum(axis=0) / n", "    var = sq.sum(axis=0) / n"
ROOT = "    sqrtvar = np.sqrt(use_var + eps)"
USED = "    use_mean, use_var = mu, var"
DX = "through_direct + through_mean + through_variance"
DIRECT, MEAN = "dxhat * rstd\n", "-(dxhat.sum(axis=0) * rstd) / n"
VARIANCE = "-0.5 * (dxhat * xmu).sum(axis=0) * rstd ** 3 * 2 * xmu / n"
RUNNING_MEAN = "(1 - momentum) * running_mean + momentum * mu"
RUNNING_VAR = "(1 - momentum) * running_var + momentum * var * n / (n - 1)"

# mistake -> (phrase, replacement), ...
Edits = tuple[tuple[str, str], ...]
MISTAKES: dict[str, Edits] = {
    "sum where a mean is needed: mu": ((MU, "    mu = x.sum(axis=0)"),),
    "sum where a mean is needed: var": ((VAR, "    var = sq.sum(axis=0)"),),
    "N - 1 in the mean": ((MU, "    mu = x.sum(axis=0) / (n - 1)"),),
    "mean not subtracted in the variance": (("    sq = xmu ** 2", "    sq = x ** 2"),),
    "eps missing in the forward": ((ROOT, "    sqrtvar = np.sqrt(use_var)"),),
    "eps outside the root in the forward": ((ROOT, "    sqrtvar = np.sqrt(use_var) + eps"),),
    "square root missing in the forward": ((ROOT, "    sqrtvar = use_var + eps"),),
    "power of rstd wrong in the forward": ((ROOT, "    sqrtvar = 1 / np.sqrt(use_var + eps)"),),
    "running statistic used in training": (
        (USED, "    use_mean, use_var = running_mean.copy(), running_var.copy()"),
    ),
    "channel axis transposed in the forward": (
        (USED, "    use_mean, use_var = x.mean(axis=1, keepdims=True), x.var(axis=1, keepdims=True)"),
    ),
    "gamma forgotten in the forward": (("    scaled = gamma * xhat", "    scaled = xhat"),),
    "beta forgotten in the forward": (("    y = scaled + beta", "    y = scaled"),),
    "mean path dropped": ((" + through_mean ", " "),),
    "variance path dropped": ((" + through_variance\n", "\n"),),
    "mean and variance paths both dropped": ((DX, "through_direct"),),
    "sign of the mean path": ((" + through_mean ", " - through_mean "),),
    "sign of the variance path": ((" + through_variance\n", " - through_variance\n"),),
    "sign of the direct path": (("dx = through_direct", "dx = -through_direct"),),
    "factor 2 in the variance path": (("-0.5 * (", "-1.0 * ("),),
    "gamma forgotten in dx": (("    dxhat = gamma * dy", "    dxhat = dy"),),
    "dy used for dxhat in the mean path": (("-(dxhat.sum", "-(dy.sum"),),
    "dy used for dxhat in the variance path": (("(dxhat * xmu).sum", "(dy * xmu).sum"),),
    "dy used for dxhat in the direct path": (("through_direct = dxhat", "through_direct = dy"),),
    "N - 1 in one place and N in another: variance path": (("2 * xmu / n", "2 * xmu / (n - 1)"),),
    "N - 1 in one place and N in another: mean path": (("* rstd) / n", "* rstd) / (n - 1)"),),
    "sum where a mean is needed: mean path": (("* rstd) / n", "* rstd)"),),
    "sum where a mean is needed: variance path": (("2 * xmu / n", "2 * xmu"),),
    "mean where a sum is needed: mean path": (("dxhat.sum(axis=0) * rstd", "dxhat.mean(axis=0) * rstd"),),
    "mean where a sum is needed: variance path": (
        ("* xmu).sum(axis=0) * rstd", "* xmu).mean(axis=0) * rstd"),
    ),
    "power of rstd wrong in the variance path": (("* rstd ** 3", "* rstd ** 2"),),
    "power of rstd wrong in the mean path": (("* rstd) / n", "* rstd ** 2) / n"),),
    "power of rstd wrong in the direct path": ((DIRECT, "dxhat\n"),),
    "eps missing in the backward": (("    rstd = 1 / sqrtvar", "    rstd = 1 / np.sqrt(var)"),),
    "eps outside the root in the backward": (
        ("    rstd = 1 / sqrtvar", "    rstd = 1 / (np.sqrt(var) + eps)"),
    ),
    "square root missing in the backward": (("    rstd = 1 / sqrtvar", "    rstd = 1 / (var + eps)"),),
    "dgamma with x instead of xhat": (("(dy * xhat).sum", "(dy * x).sum"),),
    "dgamma scaled by 1/n": (("dgamma = (dy * xhat).sum(axis=0)", "dgamma = (dy * xhat).sum(axis=0) / n"),),
    "dbeta scaled by 1/n": (("dbeta = dy.sum(axis=0)", "dbeta = dy.mean(axis=0)"),),
    "momentum reversed": (
        (RUNNING_MEAN, "momentum * running_mean + (1 - momentum) * mu"),
        ("(1 - momentum) * running_var + momentum * var", "momentum * running_var + (1 - momentum) * var"),
    ),
    "running variance with the other correction": ((" * var * n / (n - 1)", " * var"),),
    "one-pass variance cancelling": ((VAR, "    var = (x ** 2).sum(axis=0) / n - mu ** 2"),),
    "float16 accumulation": (
        (MU, "    mu = np.add.reduce(x.astype(np.float16), axis=0, dtype=np.float16).astype(float) / n"),
    ),
}

# Several names of one mistake: the numbers are the same, and the checker reports all names.
SAME = (
    {"mean and variance paths both dropped", "statistics detached from the graph"},
    {"gamma forgotten in dx", "dy used for dxhat"},
)


def edited(names: tuple[str, ...]) -> str | None:
    """The program with these mistakes; None if one of them removes a phrase that another one changes."""
    text = PROGRAM
    for name in names:
        for old, new in MISTAKES[name]:
            if text.count(old) != 1:
                return None
            text = text.replace(old, new)
    return text


def functions(text: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    scope: dict[str, Any] = {"np": np}
    exec(text, scope)
    return scope["forward"], scope["backward"]


@cache
def numbers(text: str) -> list[np.ndarray[Any, Any]]:
    """All results of the program for one batch."""
    rng = np.random.default_rng(3)
    x, dy = rng.normal(2.0, 1.5, (6, 4)), rng.normal(size=(6, 4))
    gamma, beta, mean = rng.normal(size=(3, 4))
    var = np.array([1.5, 0.5, 0.7, 2.0])

    forward, backward = functions(text)
    with np.errstate(all="ignore"):
        y, cache = forward(x, gamma, beta, 0.5, mean, var, 0.2)
        return [y, mean, var, *backward(dy, cache)]


def differ(a: str, b: str) -> bool:
    return any(
        not np.allclose(u, v, rtol=1e-9, atol=1e-12) for u, v in zip(numbers(a), numbers(b), strict=True)
    )


@cache
def pairs() -> list[tuple[str, str]]:
    """All pairs of mistakes that one program can contain."""
    return [pair for pair in combinations(MISTAKES, 2) if edited(pair) is not None]
