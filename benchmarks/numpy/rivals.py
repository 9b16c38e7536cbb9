"""PyTorch and JAX as contestants, and the list of all rivals. Each is imported only when it takes part.

torch           forward and backward alone: torch.ops.aten.native_batch_norm and native_batch_norm_backward,
                no autograd; both: F.batch_norm and autograd, which is what a user of PyTorch runs.
torch aten      both: the two native functions one after the other, without autograd's share.
torch.compile   both: F.batch_norm compiled, gradients through autograd.
jax             jit of the formula of flax (mean of squares less square of mean), and of its vjp.
numba           numba_rival.py.

Memory is recycled (`command.RECYCLED`), so that nobody pays page faults for new results. No running
moments are updated.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.harness.contest import Contestant
from benchmarks.harness.problem import EPS, Problem
from benchmarks.harness.tensors import from_tensor, tensor_on

__all__ = ["RIVALS", "flax_formula", "installed"]


def _torch(problem: Problem) -> list[Contestant]:
    import torch

    x, dy = (tensor_on(a, problem.case.layout) for a in (problem.x, problem.dy))
    gamma, beta = tensor_on(problem.gamma), tensor_on(problem.beta)
    aten = torch.ops.aten
    _, mean, rstd = aten.native_batch_norm(x, gamma, beta, None, None, True, 0.0, EPS)

    def forward() -> tuple[Any, ...]:
        return (aten.native_batch_norm(x, gamma, beta, None, None, True, 0.0, EPS)[0],)

    def backward(mean: Any = mean, rstd: Any = rstd) -> tuple[Any, ...]:
        masks = [True, True, True]
        found = aten.native_batch_norm_backward(dy, x, gamma, None, None, mean, rstd, True, EPS, masks)
        return tuple(found)

    def both() -> tuple[Any, ...]:
        y, mean, rstd = aten.native_batch_norm(x, gamma, beta, None, None, True, 0.0, EPS)
        return (y, *backward(mean, rstd))

    eager = {
        "forward": forward,
        "backward": backward,
        "both": _autograd(problem, torch.nn.functional.batch_norm),
    }
    to_numpy = partial(from_tensor, layout=problem.case.layout)
    return [Contestant("torch", eager, to_numpy), Contestant("torch aten", {"both": both}, to_numpy)]


def _torch_compile(problem: Problem) -> list[Contestant]:
    import torch

    torch._dynamo.reset()  # a fresh compilation for these shapes, not one for symbolic sizes
    compiled = torch.compile(torch.nn.functional.batch_norm, dynamic=False)
    to_numpy = partial(from_tensor, layout=problem.case.layout)
    return [Contestant("torch.compile", {"both": _autograd(problem, compiled)}, to_numpy)]


def _autograd(problem: Problem, batch_norm: Callable[..., Any]) -> Callable[[], tuple[Any, ...]]:
    """y and the gradients that autograd finds through it."""
    import torch

    x, dy = (tensor_on(a, problem.case.layout) for a in (problem.x, problem.dy))
    leaves = [x, tensor_on(problem.gamma), tensor_on(problem.beta)]
    x, gamma, beta = (leaf.detach().requires_grad_() for leaf in leaves)

    def both() -> tuple[Any, ...]:
        y = batch_norm(x, None, None, gamma, beta, True, 0.0, EPS)
        return (y, *torch.autograd.grad(y, (x, gamma, beta), dy))

    return both


def flax_formula(x: Any, gamma: Any, beta: Any, axis: int) -> tuple[Any, Any]:
    """y and var as flax's BatchNorm computes them: var = max(0, mean(x^2) - mean(x)^2), in float32."""
    import jax
    import jax.numpy as jnp

    axes = tuple(a for a in range(x.ndim) if a != axis)
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes)
    var = jnp.maximum(0, (wide * wide).mean(axes) - mean * mean)
    scale = jax.lax.rsqrt(var + EPS) * gamma
    y = (wide - mean.reshape(shape)) * scale.reshape(shape) + beta.reshape(shape)
    return y.astype(x.dtype), var


def _jax(problem: Problem) -> list[Contestant]:
    import jax

    x, dy, gamma, beta = map(jax.numpy.asarray, (problem.x, problem.dy, problem.gamma, problem.beta))

    def batch_norm(x: Any, gamma: Any, beta: Any) -> Any:
        return flax_formula(x, gamma, beta, problem.case.axis)[0]

    ready: Callable[[Any], Any] = jax.block_until_ready
    jitted = jax.jit(batch_norm)
    pull = jax.jit(lambda *values: jax.vjp(batch_norm, *values)[1])(x, gamma, beta)
    pulled = jax.jit(lambda pull, dy: pull(dy))

    @jax.jit
    def trained(x: Any, gamma: Any, beta: Any, dy: Any) -> tuple[Any, ...]:
        y, pull = jax.vjp(batch_norm, x, gamma, beta)
        return (y, *pull(dy))

    calls = {
        "forward": lambda: (ready(jitted(x, gamma, beta)),),
        "backward": lambda: tuple(ready(pulled(pull, dy))),
        "both": lambda: tuple(ready(trained(x, gamma, beta, dy))),
    }
    return [Contestant("jax", calls, lambda value: np.asarray(value).astype(np.float32))]


def _numba(problem: Problem) -> list[Contestant]:
    from benchmarks.numpy import numba_rival

    return numba_rival.contestants(problem)


# Name to (package, contestants of a problem); an empty list: this rival does not know the problem's dtype.
RIVALS: dict[str, tuple[str, Callable[[Problem], list[Contestant]]]] = {
    "torch": ("torch", _torch),
    "compile": ("torch", _torch_compile),
    "jax": ("jax", _jax),
    "numba": ("numba", _numba),
}


def installed(name: str) -> bool:
    """Whether the package of this rival can be imported."""
    return find_spec(RIVALS[name][0]) is not None
