"""Conversion to and from the arrays of the code under test: NumPy, PyTorch or JAX, each imported on first use.

Nothing is judged here, and no formula lives here.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import CellType, CodeType, ModuleType
from typing import Any

import numpy as np

from xhat.lens.checker.expected.probes import Array

__all__ = [
    "KINDS",
    "copied",
    "dtype_of",
    "gradient",
    "holds",
    "is_array",
    "kinds_for",
    "laid_out",
    "make",
    "read",
]

_EMPTY = CellType()
KINDS = ("numpy", "torch", "jax")


def make(values: Array, kind: str, dtype: str) -> Any:
    """A copy as an array of this kind and dtype. Raises ModuleNotFoundError if its package is not installed."""
    if kind == "torch":
        torch = import_module("torch")
        return torch.tensor(values, dtype=getattr(torch, dtype))
    if kind == "jax":
        jnp = import_module("jax.numpy")
        return jnp.asarray(values, dtype=getattr(jnp, dtype))
    if dtype == "bfloat16":
        return values.astype(import_module("ml_dtypes").bfloat16)
    return values.astype(dtype)


def laid_out(array: Any, kind: str, memory: str) -> Any:
    """The same values elsewhere in memory: "contiguous" as they are, "reversed" with their axes in reverse order,
    "sliced" as every second element of an array of NaN, behind its first one."""
    if memory == "contiguous" or kind == "jax":
        return array
    if kind == "torch":
        axes = tuple(range(array.ndim))[::-1]
        if memory == "reversed":
            return array.permute(axes).contiguous().permute(axes)
        wide = array.new_full((*array.shape[:-1], 2 * array.shape[-1] + 1), float("nan"))
        wide[..., 1::2] = array
        return wide[..., 1::2]
    if memory == "reversed":
        return np.asfortranarray(array)
    wide = np.full((*array.shape[:-1], 2 * array.shape[-1] + 1), np.nan, array.dtype)
    wide[..., 1::2] = array
    return wide[..., 1::2]


def is_array(value: Any) -> bool:
    """Whether the value is an array of any kind, or a number."""
    return hasattr(value, "__array__") or isinstance(value, (int, float))


def read(value: Any) -> Array:
    """An array of any kind as float64. Raises TypeError or ValueError if it is not an array of numbers."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.array(value, dtype=np.float64)


def copied(value: Any) -> Any:
    """A copy of an array of any kind."""
    return value.clone() if hasattr(value, "clone") else value.copy()


def dtype_of(value: Any) -> str:
    """The NumPy name of the dtype; "float64" if the value has none."""
    return str(getattr(value, "dtype", "float64")).removeprefix("torch.")


def kinds_for(functions: list[Callable[..., Any]], wanted: str | None) -> tuple[str, ...]:
    """The kinds of array to try: those whose package the functions use, else those that are loaded."""
    if wanted is not None:
        return (wanted,)
    used = [kind for function in functions for kind in _packages(_names_in(function))]
    scopes = [vars(sys.modules.get(getattr(f, "__module__", ""), sys)) for f in functions]
    around = [kind for scope in scopes for kind in _packages(scope)]
    loaded = [kind for kind in ("numpy", "torch", "jax") if kind in sys.modules]
    return tuple(dict.fromkeys(used or [*around, *loaded]))


def holds(kind: str, dtype: str) -> bool:
    """Whether arrays of this kind can have this dtype: JAX has float64 only if it was enabled."""
    if kind == "jax" and dtype == "float64":
        return bool(import_module("jax").config.jax_enable_x64)
    return True


def _packages(names: Mapping[str, Any]) -> list[str]:
    """The array packages among these values, PyTorch and JAX before NumPy."""
    homes = {value.__name__.partition(".")[0] for value in names.values() if isinstance(value, ModuleType)}
    return [kind for kind in ("torch", "jax", "numpy") if kind in homes]


def _names_in(function: Any) -> dict[str, Any]:
    """The globals and closure variables used by a function and its inner functions."""
    function = getattr(function, "__func__", function)
    code, scope = getattr(function, "__code__", None), getattr(function, "__globals__", {})
    if code is None:
        return {}
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    return {name: scope[name] for name in _names(code) if name in scope} | {
        name: cell.cell_contents for name, cell in cells if cell != _EMPTY
    }


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*(_names(one) for one in inner))


def gradient(
    y_of: Callable[..., Any], arguments: dict[str, Any], dy: Any, kind: str
) -> dict[str, Any] | None:
    """d + name for every argument, by automatic differentiation; None if y depends on none of them."""
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

        def pulled_back(leaves: dict[str, Any], dy: Any) -> Any:
            y, back = jax.vjp(lambda leaves: y_of(**leaves), leaves)
            return back(dy.astype(y.dtype).reshape(y.shape))[0]

        try:  # one compilation in place of one for each operation
            found = jax.jit(pulled_back)(arguments, dy)
        except Exception:  # code that looks at values can't be traced
            found = pulled_back(arguments, dy)
        return {"d" + name: g for name, g in found.items()}
    return None
