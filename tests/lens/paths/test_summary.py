"""Norms of the paths, removed shares and cancellation, compared with the projection itself."""

from typing import Any

import numpy as np
import pytest
from conftest import LAYOUTS, Layout

import xhat
from xhat import equations
from xhat.errors import ContextError, ShapeError
from xhat.lens.paths.graph import by_channel
from xhat.lens.paths.summary import path_summary, summarize


def run(layout: Layout, correction: int = 0, eps: float = 1e-5, **options: Any) -> tuple[Any, Any, Any]:
    x = layout.array("x", scale=0.7, offset=2)
    rng = np.random.default_rng(3)
    gamma = rng.normal(size=layout.channels)
    _, context = xhat.batch_norm(x, gamma, None, axis=layout.axis, eps=eps, correction=correction, **options)
    dy = layout.array("dy", offset=0.4)
    return dy, context, path_summary(dy, context)


def rows(array: Any, layout: Layout) -> Any:
    axes = layout.axis if isinstance(layout.axis, tuple) else (layout.axis,)
    return by_channel(array, tuple(sorted(a % array.ndim for a in axes))).astype(np.longdouble)


def test_norms_are_those_of_the_paths(layout: Layout) -> None:
    dy, context, summary = run(layout)
    paths = xhat.gradient_paths(dy, context)
    dx = xhat.batch_norm_backward(dy, context).dx
    for norm, array in zip(summary[:4], (*paths, dx), strict=True):
        assert norm.shape == layout.channels
        expected = np.sqrt((rows(array, layout) ** 2).sum(axis=1))
        np.testing.assert_allclose(norm.ravel(), expected.astype(float), rtol=1e-12)


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_what_is_removed_is_the_projection_on_1_and_xhat(correction: int, eps: float) -> None:
    """by_mean is the whole component along 1; by_variance the one along xhat, without the share (eps rstd^2)^2."""
    layout = LAYOUTS["NCHW"]
    dy, context, summary = run(layout, correction, eps)
    x = rows(context.x, layout)
    xhat_ = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(context.var[:, None] + eps)
    direct = rows(xhat.gradient_paths(dy, context).direct, layout)
    basis = [np.ones_like(x[0]) / np.sqrt(x.shape[1]), None]
    for c in range(5):
        basis[1] = xhat_[c] / np.sqrt((xhat_[c] ** 2).sum())
        whole = (direct[c] ** 2).sum()
        along_one, along_xhat = ((direct[c] @ b) ** 2 / whole for b in basis)
        stays = (eps / (context.var[c] + eps)) ** 2
        expected = [along_one, along_xhat, along_one, along_xhat * (1 - stays)]
        got = [summary.along_one[c], summary.along_xhat[c], summary.by_mean[c], summary.by_variance[c]]
        np.testing.assert_allclose(got, np.array(expected, dtype=float), rtol=1e-9)
    np.testing.assert_allclose(summary.by_mean + summary.by_variance + summary.kept, 1, rtol=1e-12)
    np.testing.assert_allclose(summary.kept, (summary.dx / summary.direct) ** 2, rtol=1e-12)


def test_a_gradient_along_1_and_xhat_is_removed_completely() -> None:
    x = np.random.default_rng(0).normal(size=(50, 3))
    y, context = xhat.batch_norm(x, eps=1e-30)
    summary = path_summary(2 + 3 * y, context)
    assert np.all(summary.kept < 1e-25)
    assert np.all(summary.cancellation > 1e10)


def test_an_orthogonal_gradient_passes_unchanged() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3))
    y, context = xhat.batch_norm(x, eps=1e-30)
    dy = rng.normal(size=x.shape)
    dy -= dy.mean(axis=0)
    dy -= y * (dy * y).sum(axis=0) / (y**2).sum(axis=0)
    summary = path_summary(dy, context)
    np.testing.assert_allclose(summary.kept, 1, rtol=1e-12)
    np.testing.assert_allclose(summary.cancellation, 1, rtol=1e-12)


def test_nothing_is_removed_from_a_zero_gradient() -> None:
    zero = np.zeros((2, 4))
    summary = summarize(equations.Paths(zero, zero, zero), np.ones((2, 4)))
    for name, expected in {
        "kept": 1,
        "by_mean": 0,
        "by_variance": 0,
        "cancellation": 1,
        "along_one": 0,
    }.items():
        np.testing.assert_array_equal(getattr(summary, name), expected)


def test_magnitudes_near_the_limits_do_not_overflow() -> None:
    rng = np.random.default_rng(0)
    direct, mean, variance, shape = (rng.normal(size=(2, 8)) for _ in range(4))
    usual = summarize(equations.Paths(direct, mean, variance), shape)
    for scale in (1e200, 1e-200):
        far = summarize(equations.Paths(direct * scale, mean * scale, variance * scale), shape * scale)
        np.testing.assert_allclose(far.direct, usual.direct * scale, rtol=1e-12)
        for name in ("kept", "by_mean", "along_xhat", "cancellation"):
            np.testing.assert_allclose(getattr(far, name), getattr(usual, name), rtol=1e-9)


def test_given_moments_remove_nothing() -> None:
    from xhat.ops import normalize_with_context

    x = np.random.default_rng(0).normal(size=(20, 3))
    _, context = normalize_with_context(x, np.zeros(3), np.ones(3))
    summary = path_summary(np.ones_like(x), context)
    np.testing.assert_array_equal(summary.kept, 1)
    np.testing.assert_array_equal(summary.variance, 0)


def test_another_shape_of_dy_is_refused_by_gradient_paths() -> None:
    _, context = xhat.batch_norm(np.random.default_rng(0).normal(size=(5, 3)))
    with pytest.raises(ShapeError, match="gradient_paths: dy has shape"):
        path_summary(np.ones((5, 4)), context)


def test_another_type_of_context_is_refused_by_gradient_paths() -> None:
    with pytest.raises(ContextError, match="gradient_paths: context is tuple"):
        path_summary(np.ones((5, 3)), xhat.batch_norm(np.eye(5, 3)))
