"""Inputs on which the layers of Flax and Equinox lose digits, or all of them: both errors side by side.

Each test also asks that theirs is still wrong: when it no longer is, the claim goes. The ones of Equinox that are not
here are in test_equinox_layer.py.
"""

from functools import partial
from typing import Any

import numpy as np
import oracle
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")

import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx  # noqa: E402
from jax_beside import Errors, Step, errors, numbers  # noqa: E402

import xhat.flax as xf  # noqa: E402

C = 3
ONES, ZEROS = np.ones(C, np.float32), np.zeros(C, np.float32)


@partial(jax.jit, static_argnames=("cls", "fast"))
def step(x: Any, dy: Any, cls: Any, fast: bool = True, mask: Any = None) -> Any:
    """y, statistics and gradients of linen's layer; momentum 0, so that the running statistics are the batch's."""
    layer = cls(use_running_average=False, momentum=0.0, use_fast_variance=fast)

    def f(x: Any, scale: Any, bias: Any) -> Any:
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": {"mean": ZEROS, "var": ONES}}
        return layer.apply(variables, x, mask=mask, mutable=["batch_stats"])

    y, pull, moved = jax.vjp(f, x, ONES, ZEROS, has_aux=True)
    return Step(y, moved["batch_stats"]["mean"], moved["batch_stats"]["var"], *pull(dy))


def beside(x: Any, dy: Any, fast: bool = True) -> tuple[Errors, Errors]:
    """Ours and Flax's."""
    found = [
        errors(step(x, dy, cls, fast), x, dy, ONES, ZEROS, axis=-1)
        for cls in (xf.linen.BatchNorm, linen.BatchNorm)
    ]
    for name, e in zip(("ours", "Flax's"), found, strict=True):
        print(f"\n{name:8}" + "".join(f"{k}{v:10.1e}  " for k, v in zip(e._fields, e, strict=True)))
    return found[0], found[1]


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_a_large_offset_by_the_default_formula(offset: float) -> None:
    """E[x^2] - E[x]^2 loses all digits: y is off by thousands from an offset of 1e4 on."""
    x, dy = numbers((16, 20, 12, C), 0, offset), numbers((16, 20, 12, C), 1)
    ours, theirs = beside(x, dy)
    assert ours.y < 3e-6 and max(ours.var, ours.dx, ours.dgamma) < 1e-6
    assert theirs.y > (1e-3 if offset == 1e2 else 1e2)
    assert min(theirs.dx, theirs.var) > 100 * ours.dx


def test_a_large_offset_by_the_slower_formula() -> None:
    """use_fast_variance=False: the mean is one float32, and autodiff of it loses digits of dx and dscale."""
    x, dy = numbers((16, 20, 12, C), 0, 1e6), numbers((16, 20, 12, C), 1)
    ours, theirs = beside(x, dy, fast=False)
    assert ours.y < 3e-6 and max(ours.dx, ours.dgamma) < 1e-6
    assert theirs.y > 1e-3 and theirs.dgamma > 1e-4


def test_an_offset_of_dy() -> None:
    x, dy = numbers((16, 20, 12, C), 0), numbers((16, 20, 12, C), 1, 1e5)
    ours, theirs = beside(x, dy)
    assert ours.dx < 1e-6
    assert theirs.dx > 100 * ours.dx


def test_a_constant_channel() -> None:
    """Its deviations are 0, and y is bias, exactly."""
    x = np.full((100, C), 0.1, np.float32)
    ours, theirs = (step(x, x, cls).y for cls in (xf.linen.BatchNorm, linen.BatchNorm))
    np.testing.assert_array_equal(ours, np.zeros_like(x))
    assert np.abs(theirs).max() > 0


def parts_of(x: Any, mask: Any, layer: Any) -> Any:
    """y and the running mean, of a batch in four parts along a named axis (vmap stands for devices)."""
    run = jax.vmap(lambda x, m: layer.apply(layer.init(jax.random.key(0), x), x, mask=m, mutable=["batch_stats"]),
                   axis_name="parts")  # fmt: skip
    y, moved = jax.jit(run)(x.reshape(4, -1, C), mask.reshape(4, -1, 1))
    return np.asarray(y).reshape(x.shape), np.asarray(moved["batch_stats"]["mean"])


@pytest.mark.parametrize("empty", [False, True], ids=["uneven", "a part without a value"])
def test_a_mask_over_many_parts(empty: bool) -> None:
    """The mean of means is not the mean where parts have different counts; 0 / 0 where one has none."""
    x = numbers((16, C), 2)
    x[:4] += 3
    mask = np.ones((16, 1), bool)
    mask[1:4] = False
    if empty:
        mask[0] = False
    expected = oracle.forward(x, axis=-1, mask=mask)
    found = [
        parts_of(x, mask, cls(use_running_average=False, momentum=0.0, axis_name="parts"))
        for cls in (xf.linen.BatchNorm, linen.BatchNorm)
    ]
    for _, mean in found:
        assert (mean[0] == mean).all() or empty
    ours, theirs = (
        max(oracle.worst(y, expected.y), oracle.worst(mean[0], expected.mean)) for y, mean in found
    )
    print(f"\nours {ours:.1e}, Flax's {theirs:.1e}")
    assert ours < 2e-6
    assert theirs > 0.1


def test_an_offset_over_many_parts() -> None:
    """One part, and the same in four, agree: the means of parts keep their digits."""
    x, mask = numbers((16, C), 3, 1e4), np.ones((16, 1), bool)
    expected = oracle.forward(x, axis=-1).y
    ours, theirs = (
        oracle.worst(parts_of(x, mask, cls(use_running_average=False, axis_name="parts"))[0], expected)
        for cls in (xf.linen.BatchNorm, linen.BatchNorm)
    )
    assert ours < 2e-6
    assert theirs > 10


@pytest.mark.parametrize("nothing", ["all masked", "empty"])
def test_a_batch_without_a_value_leaves_the_running_statistics(nothing: str) -> None:
    """Flax's are NaN from then on."""
    x = numbers((0 if nothing == "empty" else 8, C), 4)
    mask = None if nothing == "empty" else jnp.zeros((8, 1), bool)
    for cls, stays in ((xf.nnx.BatchNorm, True), (nnx.BatchNorm, False)):
        layer = cls(C, rngs=nnx.Rngs(0))
        nnx.jit(lambda layer, x, mask: layer(x, mask=mask))(layer, x, mask)
        for value, start in ((layer.mean[...], 0), (layer.var[...], 1)):
            assert np.array_equal(value, np.full(C, start)) if stays else np.isnan(value).all()


def test_padding_of_not_a_number_costs_no_gradient() -> None:
    """A mask keeps padding out of the statistics; Flax's gradient is NaN all the same."""
    x, dy = numbers((8, 5, C), 5), numbers((8, 5, C), 6)
    mask = np.arange(5)[:, None] < 3
    x[:, 3:], dy[:, 3:] = np.nan, 0
    ours, theirs = (step(x, dy, cls, mask=jnp.asarray(mask)) for cls in (xf.linen.BatchNorm, linen.BatchNorm))
    expected = oracle.backward(dy, x, ONES, axis=-1, mask=mask)
    assert oracle.relative_l2(np.asarray(ours.dx)[:, :3], expected.dx[:, :3]) < 1e-6
    assert oracle.relative_l2(ours.dgamma, expected.dgamma) < 1e-6
    assert np.isnan(theirs.dgamma).all()


def test_weights_weigh() -> None:
    """linen casts real weights to bool, so that 0.1 counts as much as 1."""
    x, weights = numbers((16, C), 7), np.linspace(0.1, 1, 16, dtype=np.float32)[:, None]
    expected = oracle.moments(x, axis=-1, mask=weights).mean
    ours, theirs = (
        oracle.worst(step(x, x, cls, mask=weights).mean, expected)
        for cls in (xf.linen.BatchNorm, linen.BatchNorm)
    )
    assert ours < 1e-6
    assert theirs > 1e-2
