"""What JAX makes of `xhat.jax`: programs without float64, exported for every platform, donated and saved inputs."""

import re
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import in_a_process

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax import export  # noqa: E402
from jax_beside import numbers  # noqa: E402

import xhat.jax as xj  # noqa: E402

C = 3
X, GAMMA, BETA = numbers((8, 5, C), 0, 1e3), numbers((C,), 1), numbers((C,), 2)


def step(x: Any, gamma: Any, beta: Any) -> Any:
    """y, and the gradients of x and gamma."""
    y, pull = jax.vjp(lambda x, gamma: xj.batch_norm(x, gamma, beta, activation="relu")[0], x, gamma)
    return y, pull(jnp.cos(x))


def test_importing_xhat_loads_no_jax() -> None:
    in_a_process("import sys, xhat, xhat.numpy; assert not {'jax', 'flax', 'equinox'} & set(sys.modules)")


def test_no_float64_is_needed() -> None:
    text = jax.jit(step).lower(X, GAMMA, BETA).as_text()
    assert "tensor<8x5x3xf32>" in text
    assert "f64" not in text


def test_one_artifact_for_cpu_cuda_and_tpu() -> None:
    """It is StableHLO alone, of any batch size, and the CPU's part gives the numbers of the function."""
    (b,) = export.symbolic_shape("b")
    shapes = [jax.ShapeDtypeStruct((b, 5, C), jnp.float32), *[jax.ShapeDtypeStruct((C,), jnp.float32)] * 2]
    artifact = export.export(jax.jit(step), platforms=("cpu", "cuda", "tpu"))(*shapes)
    calls = re.findall(r"custom_call @(\w+)", artifact.mlir_module())
    assert set(calls) <= {"shape_assertion"}  # of the symbolic size
    loaded = export.deserialize(artifact.serialize())
    assert loaded.platforms == ("cpu", "cuda", "tpu")
    for x in (X, X[:3]):
        for got, expected in zip(
            *(jax.tree.leaves(f(x, GAMMA, BETA)) for f in (loaded.call, jax.jit(step))), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_x_can_be_donated() -> None:
    """y lies where x did, and the numbers are those of a call that keeps x."""
    x = jnp.asarray(X)
    place = x.unsafe_buffer_pointer()
    y = jax.jit(lambda x: xj.batch_norm(x, GAMMA, BETA)[0], donate_argnums=0)(x)
    assert x.is_deleted() and y.unsafe_buffer_pointer() == place
    assert oracle.worst(y, oracle.forward(X, GAMMA, BETA, axis=-1).y) < 3e-6


def test_64_bit_mode_is_read_when_a_call_is_traced() -> None:
    from jax_beside import enable_x64

    assert xj.batch_norm(X.astype(np.float64))[0].dtype == jnp.float32
    with enable_x64(True):
        y, m = xj.batch_norm(X.astype(np.float64))
        assert y.dtype == m.high.dtype == m.count.dtype == jnp.float64
    assert oracle.worst(y, oracle.forward(X, axis=-1).y) < 1e-12


def test_strict_promotion_and_ranks_are_respected() -> None:
    """Settings under which JAX refuses what a program may not have meant."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        f = jax.jit(lambda x, mask: xj.batch_norm(x, GAMMA, BETA, mask=mask, activation=("leaky_relu", 0.1)))
        y, m = f(X, np.ones((8, 5, 1), bool))
        assert jax.jit(xj.merge)(m, m).count == 80
        half = X.astype(np.float16)
        jax.jit(lambda x, m: xj.normalize(x, m.mean, m.var(), GAMMA, BETA, residual=x))(half, m)
    options = {"axis": -1, "activation": ("leaky_relu", 0.1)}
    assert oracle.worst(y, oracle.forward(X, GAMMA, BETA, **options).y) < 3e-6
