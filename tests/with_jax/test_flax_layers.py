"""`xhat.flax.nnx.BatchNorm` and `xhat.flax.linen.BatchNorm` in the place of Flax's: numbers, state and checkpoints."""

from typing import Any

import numpy as np
import oracle
import pytest

jax = pytest.importorskip("jax")
pytest.importorskip("flax")

import jax.numpy as jnp  # noqa: E402
from flax import linen, nnx  # noqa: E402
from jax_beside import numbers  # noqa: E402

import xhat.flax as xf  # noqa: E402
from xhat import errors  # noqa: E402

C = 4
X, MASK = numbers((6, 5, C), 0, 3), numbers((6, 5, 1), 1) > -0.5
OPTIONS: dict[str, Any] = {"momentum": 0.8, "epsilon": 1e-3}


def of_nnx(cls: type, **options: Any) -> Any:
    return cls(C, rngs=nnx.Rngs(0), **OPTIONS, **options)


def with_parameters(layer: Any) -> Any:
    """The layer with parameters and statistics that are not those of the start."""
    for i, name in enumerate(("scale", "bias", "mean", "var")):
        getattr(layer, name)[...] = jnp.abs(numbers((C,), 10 + i)) + 0.5
    return layer


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_nnx_has_flaxs_numbers_where_they_are_right(mask: Any) -> None:
    """y, the gradients and the statistics after a step, and evaluation with them."""
    found = []
    for cls in (xf.nnx.BatchNorm, nnx.BatchNorm):
        layer = with_parameters(of_nnx(cls, use_fast_variance=False))

        @nnx.jit
        def step(layer: Any, x: Any) -> Any:
            def loss(layer: Any, x: Any) -> Any:
                y = layer(x, mask=mask)
                return jnp.sin(y).sum(), y

            (_, y), grads = nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True)(layer, x)
            return y, grads[1], grads[0]["scale"][...], grads[0]["bias"][...]

        @nnx.jit
        def evaluate(layer: Any) -> Any:
            return layer(X, use_running_average=True)

        found.append([*step(layer, X), layer.mean[...], layer.var[...], evaluate(layer)])
        assert found[-1][-1].dtype == jnp.float32
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_nnx_is_exact_against_the_oracle() -> None:
    layer = with_parameters(of_nnx(xf.nnx.BatchNorm))
    mean = np.asarray(layer.mean[...])
    x = X + np.float32(1e4)
    y = nnx.jit(lambda layer, x: layer(x, mask=MASK))(layer, x)
    f = oracle.forward(x, layer.scale[...], layer.bias[...], axis=-1, eps=1e-3, mask=MASK)
    assert oracle.worst(y, f.y) < 3e-6
    assert oracle.relative_l2(layer.mean[...], 0.8 * mean + 0.2 * f.mean) < 1e-6


def test_nnx_states_move_both_ways() -> None:
    """The graph and the state have the same names, types and shapes; a layer without parameters too."""
    for options in ({}, {"use_bias": False, "use_scale": False}):
        pair = [of_nnx(cls, **options) for cls in (xf.nnx.BatchNorm, nnx.BatchNorm)]
        for target, source in (pair, pair[::-1]):
            source.mean[...] = numbers((C,), 2)
            state = nnx.state(source)
            assert jax.tree.structure(nnx.state(target)) == jax.tree.structure(state)
            nnx.update(target, state)
            np.testing.assert_array_equal(target.mean[...], source.mean[...])
        np.testing.assert_allclose(pair[0](X, True), pair[1](X, True), rtol=1e-6)
        assert isinstance(pair[0], nnx.BatchNorm)


def test_nnx_views_and_modes_reach_the_layer() -> None:
    layer = of_nnx(xf.nnx.BatchNorm)
    layer.eval()
    before = np.asarray(layer.mean[...])
    layer(X)
    np.testing.assert_array_equal(layer.mean[...], before)
    layer.train()
    layer(X)
    assert not np.array_equal(layer.mean[...], before)


class Net(linen.Module):
    """A layer inside of a model, by the class that is given."""

    norm: Any
    options: Any

    @linen.compact
    def __call__(self, x: Any, train: bool, mask: Any = None) -> Any:
        """The model."""
        return self.norm(use_running_average=not train, **self.options)(linen.Dense(C)(x), mask=mask)


def of_linen(cls: type, **options: Any) -> Any:
    return Net(cls, {**OPTIONS, **options})


@pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
def test_linen_has_flaxs_numbers_collections_and_names(mask: Any) -> None:
    found = []
    variables = of_linen(linen.BatchNorm).init(jax.random.key(0), X, False)
    for cls in (xf.linen.BatchNorm, linen.BatchNorm):
        net = of_linen(cls, use_fast_variance=False)
        own = net.init(jax.random.key(0), X, train=True)
        assert jax.tree.structure(own) == jax.tree.structure(variables)  # theirs' names, in ours

        @jax.jit
        def step(variables: Any, net: Any = net) -> Any:
            def loss(params: Any) -> Any:
                y, moved = net.apply({**variables, "params": params}, X, True, mask, mutable=["batch_stats"])
                return jnp.sin(y).sum(), (y, moved)

            return jax.grad(loss, has_aux=True)(variables["params"])

        grads, (y, moved) = step(variables)
        found.append((y, moved, grads, net.apply({**variables, **moved}, X, False)))
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=3e-5, atol=3e-5)


def test_checkpoints_of_bytes_move_both_ways() -> None:
    from flax import serialization

    nets = [of_linen(cls) for cls in (xf.linen.BatchNorm, linen.BatchNorm)]
    for target, source in (nets, nets[::-1]):
        saved = serialization.to_bytes(source.init(jax.random.key(1), X, train=True))
        restored = serialization.from_bytes(target.init(jax.random.key(2), X, train=True), saved)
        np.testing.assert_allclose(
            target.apply(restored, X, False), source.apply(restored, X, False), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    ("dtype", "param_dtype", "x_dtype"),
    [(None, jnp.float32, jnp.bfloat16), (None, jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.float32, jnp.float32),
     (jnp.float16, jnp.float32, jnp.bfloat16), (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16)],
)  # fmt: skip
def test_dtypes_are_flaxs(dtype: Any, param_dtype: Any, x_dtype: Any) -> None:
    """Of y, statistics and parameters, in both layers and modes; only the numbers are better."""
    x = jax.ShapeDtypeStruct(X.shape, x_dtype)

    def kinds(cls: Any, other: Any, train: bool) -> Any:
        def by_nnx(x: Any) -> Any:
            layer = of_nnx(cls, dtype=dtype, param_dtype=param_dtype)
            return layer(x, not train), nnx.state(layer)

        net = of_linen(other, dtype=dtype, param_dtype=param_dtype)
        variables = jax.eval_shape(lambda: net.init(jax.random.key(0), X, train=True))
        by_linen = jax.eval_shape(lambda v, x: net.apply(v, x, train, mutable=["batch_stats"]), variables, x)
        return [(a.shape, a.dtype) for a in jax.tree.leaves((jax.eval_shape(by_nnx, x), by_linen))]

    for train in (True, False):
        ours = kinds(xf.nnx.BatchNorm, xf.linen.BatchNorm, train)
        assert ours == kinds(nnx.BatchNorm, linen.BatchNorm, train)


def test_statistics_of_sixteen_bits_are_the_batchs() -> None:
    """x in bfloat16 is exact in float32, and so are its moments; y is rounded once."""
    x = numbers((64, 8, C), 3, 100, jnp.bfloat16)
    layer = of_nnx(xf.nnx.BatchNorm, dtype=jnp.bfloat16)
    y = nnx.jit(lambda layer, x: layer(x))(layer, x)
    f = oracle.forward(x, axis=-1, eps=1e-3)
    assert y.dtype == jnp.bfloat16
    assert oracle.worst(y, f.y) < 2**-6
    assert oracle.relative_l2(layer.var[...], 0.8 + 0.2 * f.var) < 1e-6


def test_what_has_no_variance_or_no_fit_is_refused_and_nothing_has_moved() -> None:
    layer = of_nnx(xf.nnx.BatchNorm)
    before = np.asarray(layer.mean[...])
    for x, kind, sentence in (
        (X[0, :1], errors.DegenerateBatchError, r"BatchNorm: x \(1, 4\) has one value per channel"),
        (X[..., :3], errors.ShapeError, r"BatchNorm: mean has shape \(4,\), expected \(3,\) to match axis 2"),
    ):
        for call in (layer, nnx.jit(lambda x: layer(x))):
            with pytest.raises(kind, match=sentence):
                call(x)
    with pytest.raises(errors.ShapeError, match="BatchNorm: mask has shape"):
        layer(X, mask=np.ones((5, 6, 1), bool))
    np.testing.assert_array_equal(layer.mean[...], before)
    with pytest.raises(ValueError, match="No `use_running_average` argument was provided"):
        of_nnx(xf.nnx.BatchNorm, use_running_average=None)(X)


def test_a_model_is_initialized_with_one_example() -> None:
    """As usual, where no statistics are needed."""
    variables = of_linen(xf.linen.BatchNorm).init(jax.random.key(0), X[0, :1], train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(C))


def test_complex_numbers_are_left_to_flax() -> None:
    x = X + 1j * numbers(X.shape, 4)
    found = []
    for cls in (xf.linen.BatchNorm, linen.BatchNorm):
        layer = cls(use_running_average=False, dtype=jnp.complex64)
        found.append(layer.apply(layer.init(jax.random.key(0), x), x, mutable=["batch_stats"])[0])
    np.testing.assert_array_equal(*found)
