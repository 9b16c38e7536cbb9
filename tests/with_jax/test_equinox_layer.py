"""`xhat.equinox.BatchNorm` in the place of Equinox's: numbers in both modes, state, and checkpoints both ways."""

import io
from typing import Any

import numpy as np
import oracle
import pytest

jax = pytest.importorskip("jax")
eqx = pytest.importorskip("equinox")

import jax.numpy as jnp  # noqa: E402
from jax_beside import numbers  # noqa: E402

import xhat.equinox as xe  # noqa: E402
from xhat import errors  # noqa: E402

C = 4
X = numbers((8, C, 5), 0, 3)
OURS, THEIRS = xe.BatchNorm, eqx.nn.BatchNorm


def made(cls: type, mode: str = "batch", **options: Any) -> Any:
    return eqx.nn.make_with_state(cls)(C, axis_name="batch", mode=mode, eps=1e-3, momentum=0.8, **options)


def over_batch(layer: Any, x: Any, state: Any, inference: bool = False) -> Any:
    def call(x: Any, state: Any) -> Any:
        return layer(x, state, inference=inference)

    return jax.vmap(call, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


def two_steps(cls: type, mode: str, x: Any) -> Any:
    layer, state = made(cls, mode)
    layer, rest = eqx.partition(layer, eqx.is_inexact_array)
    found = []

    @jax.jit
    def run(layer: Any, x: Any, state: Any) -> Any:
        def loss(layer: Any, x: Any) -> Any:
            y, moved = over_batch(eqx.combine(layer, rest), x, state)
            return jnp.sin(y).sum(), (y, moved)

        return jax.grad(loss, (0, 1), has_aux=True)(layer, x)

    for scale in (1, 2):
        (dlayer, dx), (y, state) = run(layer, x * scale, state)
        found.append((y, dx, dlayer.weight, dlayer.bias))
    return found, eqx.combine(layer, rest), state


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_it_has_equinoxs_numbers(mode: str) -> None:
    """Two steps with their gradients, and the state after them."""
    (ours, _, our_state), (theirs, _, their_state) = (two_steps(cls, mode, X) for cls in (OURS, THEIRS))
    for a, b in zip(jax.tree.leaves((ours, our_state)), jax.tree.leaves((theirs, their_state)), strict=True):
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_it_is_exact_far_from_zero(mode: str) -> None:
    x = X + np.float32(1e5)
    layer, state = made(OURS, mode)
    y, state = jax.jit(lambda x, s: over_batch(layer, x, s))(x, state)
    f = oracle.forward(x, axis=1, eps=1e-3)
    assert oracle.worst(y, f.y) < 2e-6
    theirs, their_state = made(THEIRS, mode)
    assert oracle.worst(over_batch(theirs, x, their_state)[0], f.y) > 1e-3


def test_the_average_keeps_its_digits_after_the_first_batch() -> None:
    """Mode "ema": the second batch is normalized by 0.8 of the first one's statistics and 0.2 of its own."""
    first, second = X + np.float32(1e5), numbers(X.shape, 1, 1e5)
    layer, state = made(OURS, "ema")
    run = jax.jit(lambda x, s: over_batch(layer, x, s))
    _, state = run(first, state)
    y, _ = run(second, state)
    a, b = (oracle.moments(v) for v in (first, second))
    mean = 0.8 * np.float64(np.float32(a.mean)) + 0.2 * b.mean  # the state holds float32
    var = 0.8 * a.m2 / 40 + 0.2 * b.m2 / 40
    assert (
        oracle.worst(y, oracle.forward(second, eps=1e-3, fixed=(mean, var)).y) < 1e-2
    )  # of half a unit of 1e5
    assert (
        np.abs(np.asarray(y) - np.asarray(oracle.forward(second, eps=1e-3, fixed=(mean, var)).y)).mean()
        < 5e-3
    )


def test_evaluation_takes_the_bias_out_from_where_the_variance_started() -> None:
    """The average of one variance is that variance; Equinox's is off by what is left of the start, over 1 - that."""
    expected = oracle.moments(X).m2 / 40
    for cls in (OURS, THEIRS):
        layer, state = made(cls)
        run, evaluate = (
            jax.jit(lambda s, layer=layer, way=way: over_batch(layer, X, s, inference=way))
            for way in (False, True)
        )
        for batches in (1, 2, 3):
            _, state = run(state)
            spread = np.asarray(evaluate(state)[0], np.float64).var((0, 2))
            found = expected / spread - 1e-3  # spread = var / (evaluation's var + eps)
            left = 0.8**batches
            off = 0 if cls is OURS else left / (1 - left)
            np.testing.assert_allclose(found.astype(float), (expected + off).astype(float), rtol=1e-4)


def test_evaluation_before_any_batch_is_the_identity() -> None:
    layer, state = made(OURS)
    np.testing.assert_allclose(
        over_batch(layer, X, state, inference=True)[0], X / np.sqrt(1 + 1e-3), rtol=1e-6
    )


@pytest.mark.parametrize("mode", ["batch", "ema"])
def test_checkpoints_move_both_ways(mode: str) -> None:
    """Leaves written by one layer are read by the other."""
    for source, target in ((OURS, THEIRS), (THEIRS, OURS)):
        layer, state = made(source, mode)
        layer = eqx.tree_at(lambda m: m.weight, layer, jnp.arange(1.0, C + 1))
        _, state = jax.jit(lambda s, layer=layer: over_batch(layer, X, s))(state)
        file = io.BytesIO()
        eqx.tree_serialise_leaves(file, (layer, state))
        file.seek(0)
        restored, its_state = eqx.tree_deserialise_leaves(file, made(target, mode))
        for a, b in zip(jax.tree.leaves((layer, state)), jax.tree.leaves((restored, its_state)), strict=True):
            np.testing.assert_array_equal(a, b)
        assert isinstance(restored, THEIRS)


@pytest.mark.parametrize("inference", [False, True])
def test_dtypes_are_equinoxs(inference: bool) -> None:
    for x_dtype in (jnp.float32, jnp.bfloat16):
        for options in ({}, {"dtype": x_dtype}, {"channelwise_affine": False}):
            kinds = []
            for cls in (OURS, THEIRS):
                layer, state = made(cls, **options)

                def run(x: Any, state: Any, layer: Any = layer) -> Any:
                    return over_batch(layer, x, state, inference)[0]

                kinds.append(jax.eval_shape(run, jax.ShapeDtypeStruct(X.shape, x_dtype), state).dtype)
            assert kinds[0] == kinds[1], (x_dtype, options)


def test_one_value_per_channel_gives_bias_and_no_nan() -> None:
    layer, state = made(OURS)
    y, pull = jax.vjp(jax.jit(lambda x: over_batch(layer, x, state)[0]), X[:1, :, 0])
    np.testing.assert_array_equal(y, np.zeros((1, C)))
    np.testing.assert_array_equal(pull(y + 1)[0], np.zeros((1, C)))


def test_a_wrong_number_of_channels_and_a_missing_name() -> None:
    layer, state = made(OURS)
    with pytest.raises(errors.ShapeError, match=r"BatchNorm: mean has shape \(4,\), expected \(3,\)"):
        over_batch(layer, X[:, :3], state)
    with pytest.raises(NameError):
        layer(X[0], state)


def test_devices_and_examples_together() -> None:
    """Two names: an axis of devices, here another vmap, and one of examples."""
    layer, state = eqx.nn.make_with_state(OURS)(C, axis_name=["outer", "inner"], mode="batch")
    call = layer
    for name in ("inner", "outer"):
        call = jax.vmap(call, axis_name=name, in_axes=(0, None), out_axes=(0, None))
    y, _ = jax.jit(call)(X.reshape(2, 4, C, 5), state)
    assert oracle.worst(np.asarray(y).reshape(X.shape), oracle.forward(X, axis=1).y) < 2e-6
