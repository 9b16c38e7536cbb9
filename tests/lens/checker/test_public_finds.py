"""What docs/checker-finds.md lists: each fault of public code, in a few lines of our own, is named as the page says."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xhat.lens import check

PAGE = Path(__file__).parents[3] / "docs" / "checker-finds.md"


def detached(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    with torch.no_grad():
        std, mean = torch.std_mean(x, (0, 2, 3), keepdim=True)
        rstd = torch.rsqrt(std**2 + eps)
    return gamma.view(-1, 1, 1) * ((x - mean) * rstd) + beta.view(-1, 1, 1)


def statistics_of_rows(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    """x is NHWC, and the sums leave out axis 1."""
    centered = x - np.mean(x, (0, 2, 3), keepdims=True)
    power = np.mean(np.square(centered), (0, 2, 3), keepdims=True)
    return centered / np.sqrt(power + eps) * gamma + beta


def first_block_about_zero(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    """Blocks are merged as Welford's update merges values, and the mean before the first block is 0."""
    channels = np.ascontiguousarray(x.T)  # so that NumPy's sums are trees, as a GPU's are
    mean = squares = np.zeros((len(channels), 1), x.dtype)
    for start in range(0, len(x), 16384):
        block = channels[:, start : start + 16384]
        seen = x.dtype.type(start + block.shape[1])
        before, mean = mean, mean + (block - mean).sum(1, keepdims=True) / seen
        squares = squares + ((block - before) * (block - mean)).sum(1, keepdims=True)
    return gamma * ((channels - mean) / np.sqrt(squares / x.dtype.type(len(x)) + eps)).T + beta


def mean_of_squares(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    flat = x.flatten(2) if x.ndim > 2 else x[:, :, None]
    mean = flat.mean((0, 2))
    rstd = torch.rsqrt(torch.square(flat).mean((0, 2)) - mean.square() + eps)
    y = (flat - mean[:, None]) * (gamma * rstd)[:, None] + beta[:, None]
    return y.reshape(x.shape)


def deviation_in_place_of_variance(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    root = np.sqrt(np.std(x, 0) + eps)
    xhat = (x - np.mean(x, 0)) / root
    return gamma * xhat + beta, (xhat, root, gamma)


def backward_of_variance(dy: Any, cache: Any) -> Any:
    xhat, root, gamma = cache
    dxhat = gamma * dy
    dx = (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).mean(0)) / root
    return dx, (dy * xhat).sum(0), dy.sum(0)


def two_small_numbers(x: Any, gamma: Any, beta: Any) -> Any:
    """1e-6 is added to the root, and the variance is a sum over N - 1."""
    mean, var = x.mean(0), x.var(0, ddof=1)
    xhat = (x - mean) / (np.sqrt(var) + 1e-6)
    return gamma * xhat + beta, (x, mean, var, xhat, gamma)


def backward_with_another(dy: Any, cache: Any) -> Any:
    """1e-5 is added under the root, and the sums are divided by N."""
    x, mean, var, xhat, gamma = cache
    dxhat, rstd = gamma * dy, 1 / np.sqrt(var + 1e-5)
    dvar = -0.5 * rstd**3 * (dxhat * (x - mean)).sum(0)
    dx = rstd * (dxhat - dxhat.mean(0)) + 2 / len(x) * dvar * (x - mean)
    return dx, (dy * xhat).sum(0), dy.sum(0)


ROOT_TWICE = "square root taken twice in the forward"
DARKNET = {
    "eps outside the root in the forward",
    "another eps in the backward",
    "N - 1 in one place and N in another: variance path",
}
# project: functions, options, outputs that are wrong, names
FINDS: dict[str, tuple[tuple[Any, ...], dict[str, str], set[str], set[str]]] = {
    "fastai course22p2": (
        (detached,),
        {},
        {"dx"},
        {"statistics detached from the graph", "mean and variance paths both dropped"},
    ),
    "Dive into Deep Learning": (
        (statistics_of_rows,),
        {"layout": "NHWC"},
        {"y"},
        {"channel axis transposed in the forward"},
    ),
    "attorch": ((first_block_about_zero,), {"dtype": "float32"}, {"y"}, {"one-pass variance cancelling"}),
    "labml-nn": ((mean_of_squares,), {}, {"y"}, {"one-pass variance cancelling"}),
    "NumpyDL": ((deviation_in_place_of_variance, backward_of_variance), {}, {"y"}, {ROOT_TWICE}),
    "darknet": ((two_small_numbers, backward_with_another), {}, {"y", "dx"}, DARKNET),
}


@pytest.mark.parametrize("project", FINDS)
def test_a_find_is_wrong_and_named_as_the_page_says(project: str) -> None:
    functions, options, wrong, names = FINDS[project]
    verdict = check(*functions, **options)
    assert verdict.status == 1, str(verdict)
    assert {row.output for row in verdict.rows if row.right is False} == wrong, str(verdict)
    assert verdict.names == names, str(verdict)
    [row] = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| {project} ")]
    assert {name for name in names if f"*{name}*" in row} == names


def test_the_page_lists_no_other_project() -> None:
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]] == list(FINDS)
