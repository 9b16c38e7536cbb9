"""Which kernels compute a tensor: the compiled ones, Triton's, or none, where `composed` runs torch's operations.

    kernels    plain CPU tensors
    triton     tensors of one CUDA or ROCm device, where that is switched on
    composed   everything else

Triton is imported when the first tensor needs it.
"""

import os
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from xhat.errors import ArgumentError
from xhat.torch import cpu
from xhat.torch.errors import TensorTypeError
from xhat.torch.inputs import CODES
from xhat.torch.internals import ordinary, plain

__all__ = ["engine_for", "engine_of", "recorded_on", "use_triton"]

LARGEST = 2**31 - 1  # elements: Triton's kernels index a channel by 32 bits

# True only where Triton is installed. torch.compile traces what reads this, and would warn of a call to `_installed`.
switched_on = os.environ.get("XHAT_TRITON", "") not in ("", "0") and find_spec("triton") is not None
_interpreted = (
    os.environ.get("TRITON_INTERPRET") == "1"
)  # Triton's own switch: kernels run on the CPU, for tests


def use_triton(enabled: bool = True) -> None:
    """Compute batch norms on CUDA and ROCm devices by kernels in Triton, from the next call on.

    They are off by default: the kernels have been tested without a GPU, by Triton's interpreter and by reading the
    machine code, and have not run on one. ``XHAT_TRITON=1`` in the environment switches them on from the start.

    Parameters
    ----------
    enabled : bool, default True
        False to switch them off.

    Raises
    ------
    ArgumentError
        If Triton is not installed, which PyTorch's builds for CUDA and ROCm bring with them.

    See Also
    --------
    engine_of : What computes the batch norm of a tensor.

    Examples
    --------
    >>> import xhat.torch as xt
    >>> xt.use_triton(False)
    """
    global switched_on
    if enabled and not _installed():
        raise ArgumentError(
            "use_triton: the package triton is not installed, expected it beside PyTorch. Its builds for CUDA and ROCm "
            "on Linux bring it; elsewhere batch norms on a GPU run as torch's own operations."
        )
    switched_on = bool(enabled)


def engine_of(tensor: Tensor) -> str:
    """Name what computes the batch norm of a tensor in eager mode.

    Parameters
    ----------
    tensor : torch.Tensor
        The input of a batch norm.

    Returns
    -------
    {"kernels", "triton", "composed"}
        The compiled kernels, for plain CPU tensors; Triton's kernels, for tensors of a CUDA or ROCm device where they
        are switched on; or torch's operations, for everything else.

    Raises
    ------
    TensorTypeError
        If the argument is no tensor; it is an ArgumentError and a TypeError.

    See Also
    --------
    use_triton : Switch on the kernels in Triton.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> xt.engine_of(torch.zeros(2, 3))
    'kernels'
    >>> xt.engine_of(torch.zeros(2, 3, dtype=torch.complex64))
    'composed'
    """
    if not isinstance(tensor, Tensor):
        raise TensorTypeError(f"engine_of: got {type(tensor).__name__}, expected a tensor.")
    engine = engine_for(tensor)
    return "composed" if engine is None or tensor.dtype not in CODES else str(engine.NAME)


def engine_for(*tensors: Tensor | None) -> Any:
    """The module whose functions compute these tensors; None: there are no kernels for them."""
    if switched_on and (engine := _triton(tensors)) is not None:
        return engine
    return cpu if plain(*tensors) else None


def recorded_on(device: torch.device) -> bool:
    """Whether a graph that is being recorded has operators with kernels on this device."""
    return device.type == "cpu" or (switched_on and device.type == "cuda")


def _triton(tensors: tuple[Tensor | None, ...]) -> ModuleType | None:
    device = next(t.device for t in tensors if t is not None)
    if device.type != ("cpu" if _interpreted else "cuda") or not _installed():
        return None
    for t in tensors:
        if t is not None and not (ordinary(t) and t.device == device and t.numel() <= LARGEST):
            return None
    return _passes()


@lru_cache(maxsize=1)
def _passes() -> ModuleType:
    return import_module("xhat.torch.gpu.passes")


@lru_cache(maxsize=1)
def _installed() -> bool:
    return find_spec("triton") is not None
