"""`xhat.jax` under every transform of JAX, to the third derivative, against autodiff of the definition in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax import lax  # noqa: E402
from jax_beside import definition, enable_x64, numbers, relative  # noqa: E402

import xhat.jax as xj  # noqa: E402

SHAPE, C = (3, 4, 2), 2
X, T, V = (numbers(SHAPE, i, o, np.float64) for i, o in ((0, 50), (1, 0), (2, 0)))
GAMMA, BETA = numbers((C,), 3, 1, np.float64), numbers((C,), 4, 0, np.float64)
MASK = (np.arange(12).reshape(3, 4, 1) % 4 != 1) * np.linspace(0.5, 2, 12).reshape(3, 4, 1)


def ours(x: Any, gamma: Any = GAMMA, beta: Any = BETA) -> Any:
    return xj.batch_norm(x, gamma, beta, mask=MASK, correction=1)[0]


def theirs(x: Any, gamma: Any = GAMMA, beta: Any = BETA) -> Any:
    return definition(x, gamma, beta, mask=MASK, correction=1)


def loss(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *a: (jnp.sin(f(*a)) * T).sum()


def layers(f: Callable[..., Any], x: Any) -> Any:
    """Three layers in a loop, each with parameters of its own."""
    parameters = jnp.stack([jnp.asarray(GAMMA), 2 * GAMMA, BETA]), jnp.stack([jnp.asarray(BETA)] * 3)
    return lax.scan(lambda x, p: (jnp.cos(f(x, *p)), None), x, parameters)[0]


TRANSFORMS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "forward": lambda f: f(X),
    "grad": lambda f: jax.grad(loss(f), (0, 1, 2))(X, GAMMA, BETA),
    "jvp": lambda f: jax.jvp(f, (X, GAMMA, BETA), (V, BETA, GAMMA)),
    "linearize": lambda f: jax.linearize(f, X)[1](V),
    "jacfwd": lambda f: jax.jacfwd(lambda g: f(X, g))(GAMMA),
    "jacfwd of x": lambda f: jax.jacfwd(lambda s: f(X + s * V))(0.5),
    "jacrev": lambda f: jax.jacrev(lambda x: f(x)[0, 0])(X),
    "hessian": lambda f: jax.hessian(lambda a: loss(f)(X + a * V, GAMMA * (1 + a), BETA))(0.1),
    "hessian of x": lambda f: jax.jvp(jax.grad(loss(f)), (X,), (V,))[1],
    "reverse over reverse": lambda f: jax.grad(lambda x: (jax.grad(loss(f))(x) * V).sum())(X),
    "reverse over forward": lambda f: jax.grad(lambda x: (jax.jvp(loss(f), (x,), (V,))[1]).sum())(X),
    "third order": lambda f: jax.grad(jax.grad(jax.grad(lambda a: loss(f)(X + a * V))))(0.1),
    "vmap": lambda f: jax.vmap(f, (0, None, 0))(
        np.stack([X, V]), GAMMA, np.stack([BETA, GAMMA])
    ),
    "vmap of grad": lambda f: jax.vmap(jax.grad(loss(f), (0, 1)), (0, None))(np.stack([X, V]), GAMMA),
    "grad of vmap": lambda f: jax.grad(lambda x: jax.vmap(loss(f))(x).sum())(np.stack([X, V])),
    "scan": lambda f: jax.grad(lambda x: (layers(f, x) * T).sum())(X),
    "remat": lambda f: jax.grad(loss(jax.checkpoint(f)), (0, 1))(X, GAMMA),
    "cond": lambda f: jax.grad(lambda x: lax.cond(x.sum() > 0, lambda x: loss(f)(x), lambda x: x.sum(), x))(X),
    "while": lambda f: jax.jvp(lambda x: lax.fori_loop(0, 2, lambda _, x: f(x), x), (X,), (V,)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform(name: str) -> None:
    with enable_x64(True):
        got, expected = (jax.jit(lambda f=f: TRANSFORMS[name](f))() for f in (ours, theirs))
        assert relative(got, expected) < 1e-11


WRAPPED: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "jit inside": jax.jit,
    "remat inside": jax.checkpoint,
    "scan inside": lambda f: lambda x: lax.scan(lambda x, _: (f(x), None), x, None, 1)[0],
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_named_axis_is_differentiated_from_outside(name: str) -> None:
    """Where the gradient is taken, the name is no longer bound."""
    one = jax.vmap(lambda x: xj.batch_norm(x, GAMMA, BETA, axis_name="examples")[0], axis_name="examples")
    with enable_x64(True):
        got = jax.jit(jax.grad(loss(WRAPPED[name](one))))(X)
        expected = jax.jit(jax.grad(loss(lambda x: definition(x, GAMMA, BETA))))(X)
        assert relative(got, expected) < 1e-11


def test_eager_calls_are_the_same_as_compiled_ones() -> None:
    with enable_x64(True):
        assert relative(ours(X), theirs(X)) < 1e-11


@pytest.mark.parametrize("name", ["hessian of x", "third order"])
def test_higher_orders_keep_their_digits_far_from_zero(name: str) -> None:
    """In float32, at an offset of 1e4: autodiff of the definition has none left."""
    x = numbers(SHAPE, 5, 1e4)
    t, v, gamma = (a.astype(np.float32) for a in (T, V, GAMMA))

    def run(f: Callable[..., Any], x: Any, gamma: Any, v: Any, t: Any) -> Any:
        def total(x: Any) -> Any:
            return (jnp.sin(f(x, gamma)) * t).sum()

        if name == "third order":
            return jax.grad(jax.grad(jax.grad(lambda a: total(x + a * v))))(jnp.zeros((), x.dtype))
        return jax.jvp(jax.grad(total), (x,), (v,))[1]

    with enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (x, gamma, v, t)]
        expected = np.asarray(jax.jit(lambda *a: run(definition, *a))(*wide))
    exact, naive = (
        relative(jax.jit(lambda *a, f=f: run(f, *a))(x, gamma, v, t), expected)
        for f in (lambda x, gamma: xj.batch_norm(x, gamma)[0], definition)
    )
    assert exact < 2e-5
    assert naive > 20 * exact
