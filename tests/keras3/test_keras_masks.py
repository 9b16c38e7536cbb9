"""Masks and empty batches: exact statistics where there are some, and none where nothing is included."""

from typing import Any

import numpy as np
import oracle
import pytest
from on_backend import KERAS, XHAT, built, f64, run, trains

EPS = 1e-3


def data(*shape: int, offset: float = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(len(shape))
    return (rng.normal(size=shape) + offset).astype(np.float32), rng.normal(size=shape).astype(np.float32)


def masks(*shape: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    keep = rng.random(shape) < 0.7
    keep.flat[:2] = True, False
    return {
        "bool": keep,
        "int": keep.astype(np.int32),
        "weights": (keep * rng.uniform(0.2, 3, shape)).astype(np.float32),
    }


def agree(x: Any, dy: Any, mask: Any, w: Any, axis: int = -1) -> None:
    """A call of ours against the oracle, whose mask is w."""
    layer = built(XHAT, x, name="bn", axis=axis, momentum=0, epsilon=EPS)
    got = run(layer, x, dy, mask=mask)
    expected = oracle.forward(x, axis=axis, eps=EPS, mask=w)
    assert oracle.worst(got.y, expected.y) <= 2e-6
    assert oracle.relative_l2(got.mean, expected.mean) <= 1e-6
    assert oracle.relative_l2(got.var, expected.var) <= 1e-6
    if trains:
        assert oracle.relative_l2(got.dx, oracle.backward(dy, x, axis=axis, eps=EPS, mask=w).dx) <= 1e-6


@pytest.mark.parametrize(("kind", "offset"), [("bool", 0), ("bool", 1e6), ("int", 0), ("weights", 1e6)])
def test_a_mask_weighs_the_statistics(kind: str, offset: float) -> None:
    x, dy = data(5, 7, 3, offset=offset)
    mask = masks(5, 7)[kind]
    agree(x, dy, mask, mask[..., None])


def test_keras_takes_any_weight_for_1() -> None:
    x, _ = data(5, 7, 3)
    mask = masks(5, 7)["weights"]
    got = run(built(KERAS, x, momentum=0), x, mask=mask)
    assert oracle.relative_l2(got.mean, oracle.forward(x, axis=-1, mask=mask[..., None]).mean) > 0.1
    assert oracle.relative_l2(got.mean, oracle.forward(x, axis=-1, mask=(mask > 0)[..., None]).mean) <= 1e-5


def test_a_mask_of_one_channel() -> None:
    x, dy = data(5, 7, 1)
    mask = masks(5, 7)["bool"]
    agree(x, dy, mask, mask[..., None])
    with pytest.raises((IndexError, ValueError)):
        run(built(KERAS, x), x, mask=mask)


def test_a_mask_that_differs_between_channels() -> None:
    """(N, C) for x (N, C, L) and axis 1: one of its channels at a time, by the oracle."""
    x, _ = data(6, 3, 5)
    mask = masks(6, 3)["bool"]
    got = run(built(XHAT, x, axis=1, momentum=0, epsilon=EPS), x, mask=mask)
    for c in range(3):
        expected = oracle.forward(x[:, c : c + 1], axis=1, eps=EPS, mask=mask[:, c, None, None])
        assert oracle.worst(got.y[:, c : c + 1], expected.y) <= 2e-6
        assert oracle.worst(got.var[c : c + 1], expected.var) <= 2e-6


def test_padding_that_is_not_finite_reaches_nothing_else() -> None:
    x, dy = data(5, 7, 3)
    mask = masks(5, 7)["bool"]
    clean = np.where(mask[..., None], x, 0)
    x[~mask] = np.nan
    dy[~mask] = 0
    got = run(built(XHAT, x, momentum=0, epsilon=EPS), x, dy, mask=mask)
    expected = oracle.forward(clean, axis=-1, eps=EPS, mask=mask[..., None])
    assert oracle.worst(got.y, np.where(mask[..., None], expected.y, np.nan)) <= 2e-6
    assert oracle.relative_l2(got.mean, expected.mean) <= 1e-6
    if trains:
        gradients = oracle.backward(dy, clean, axis=-1, eps=EPS, mask=mask[..., None])
        assert oracle.relative_l2(got.dx, gradients.dx) <= 1e-6
        assert oracle.relative_l2(got.dgamma, gradients.dgamma) <= 1e-6
        theirs = run(built(KERAS, x, momentum=0, epsilon=EPS), x, dy, mask=mask)
        assert oracle.relative_l2(theirs.mean, expected.mean) <= 1e-5 and np.isnan(theirs.dgamma).all()


def statistics(kind: type, x: Any, mask: Any) -> Any:
    """y, and the moving statistics before and after a batch."""
    layer = built(kind, x, name="bn")
    layer.moving_mean.assign([3, -0.1, np.pi][: x.shape[-1]])
    before = f64(layer.moving_mean), f64(layer.moving_variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        y, *_, mean, var = run(layer, x, mask=mask)
    return y, before, (mean, var)


def test_a_batch_of_padding_leaves_the_statistics() -> None:
    x, _ = data(5, 7, 3)
    mask = np.zeros((5, 7), bool)
    y, before, after = statistics(XHAT, x, mask)
    assert np.array_equal(before, after) and np.isfinite(y).all()
    _, before, after = statistics(KERAS, x, mask)
    assert np.allclose(after[0], 0.99 * before[0])  # 3 becomes 2.97


@pytest.mark.filterwarnings(
    "ignore:Mean of empty slice:RuntimeWarning", "ignore:invalid value:RuntimeWarning"
)
def test_an_empty_batch_leaves_the_statistics() -> None:
    x = np.zeros((0, 7, 3), np.float32)
    y, before, after = statistics(XHAT, x, None)
    assert np.array_equal(before, after) and y.shape == x.shape
    _, _, after = statistics(KERAS, x, None)
    assert np.isnan(after[0]).all()
