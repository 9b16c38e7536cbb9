"""Numbers into the arrays that somebody's code wants, and back: NumPy, PyTorch, JAX; each imported when asked for.

Nothing is judged here, and no formula lives here.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from xhat.lens.probes import Array

__all__ = ["KINDS", "dtype_of", "gradient", "holds", "is_array", "kinds_for", "make", "read"]

KINDS = ("numpy", "torch", "jax")


def make(values: Array, kind: str, dtype: str) -> Any:
    """A fresh array of a kind and dtype. Raises ModuleNotFoundError where the kind (or bfloat16) isn't installed."""
    if kind == "torch":
        torch = import_module("torch")
        return torch.tensor(values, dtype=getattr(torch, dtype))
    if kind == "jax":
        jnp = import_module("jax.numpy")
        return jnp.asarray(values, dtype=getattr(jnp, dtype))
    if dtype == "bfloat16":
        return values.astype(import_module("ml_dtypes").bfloat16)
    return values.astype(dtype)


def is_array(value: Any) -> bool:
    """Whether a value is an array of any kind, or a number."""
    return hasattr(value, "__array__") or isinstance(value, (int, float))


def read(value: Any) -> Array:
    """The numbers of any array, as float64. Raises TypeError or ValueError for what is no array of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.array(value, dtype=np.float64)


def dtype_of(value: Any) -> str:
    """The dtype by its NumPy name, "float64" where there is none."""
    return str(getattr(value, "dtype", "float64")).removeprefix("torch.")


def kinds_for(functions: list[Callable[..., Any]], wanted: str | None) -> tuple[str, ...]:
    """The kinds of array to try, the likeliest first: those whose package the functions mention."""
    if wanted is not None:
        return (wanted,)
    mentioned = [kind for function in functions for kind in _mentioned(function)]
    installed = [kind for kind in KINDS if kind == "numpy" or (kind in sys.modules and find_spec(kind))]
    return tuple(dict.fromkeys(mentioned or installed))


def holds(kind: str, dtype: str) -> bool:
    """Whether arrays of a kind can have a dtype here: JAX has float64 only where it was switched on."""
    if kind == "jax" and dtype == "float64":
        return bool(import_module("jax").config.jax_enable_x64)
    return True


def _mentioned(function: Callable[..., Any]) -> list[str]:
    """Packages that a function's code names, or has in its module, PyTorch and JAX before NumPy."""
    function = getattr(function, "__func__", function)
    scope = getattr(function, "__globals__", {})
    code = getattr(function, "__code__", None)
    names = _names(code) if code is not None else set()

    def packages(chosen: set[str]) -> set[str]:
        values = [scope[name] for name in chosen if name in scope]
        homes = (getattr(v, "__name__", "") if isinstance(v, type(sys)) else "" for v in values)
        return {home.partition(".")[0] for home in homes}

    inside, around = packages(names), packages(set(scope))
    return [kind for found in (inside, around) for kind in ("torch", "jax", "numpy") if kind in found]


def _names(code: Any) -> set[str]:
    inner = (constant for constant in code.co_consts if hasattr(constant, "co_names"))
    return set(code.co_names).union(*(_names(one) for one in inner))


def gradient(
    y_of: Callable[..., Any], arguments: dict[str, Any], dy: Any, kind: str
) -> dict[str, Any] | None:
    """d + name for every argument, by the namespace's own differentiation; None where y does not depend on any."""
    if kind == "torch":
        torch = import_module("torch")
        leaves = {name: value.clone().requires_grad_(True) for name, value in arguments.items()}
        y = y_of(**leaves)
        if not getattr(y, "requires_grad", False):
            return None
        found = torch.autograd.grad(
            y, list(leaves.values()), dy.to(y.dtype).reshape(y.shape), allow_unused=True
        )
        return {
            "d" + name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found, strict=True)
        }
    if kind == "jax":
        jax = import_module("jax")
        y, back = jax.vjp(lambda leaves: y_of(**leaves), arguments)
        (found,) = back(dy.astype(y.dtype).reshape(y.shape))
        return {"d" + name: g for name, g in found.items()}
    return None
