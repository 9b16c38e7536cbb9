"""Runs a kernel: compiles it once for each combination of constants, dtypes and alignments, and launches it.

Triton's own launch reads and specializes every argument, which takes five times as long as launching the compiled
kernel that it returns. The key below has everything that a compilation depends on.
"""

import os
from typing import Any

import torch
from torch import Tensor

__all__ = ["OPTIONS", "interpreted", "launch"]

# Without fusion, so that the forward and the backward pass compute the same bits; fma is written where it is wanted.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

_compiled: dict[Any, Any] = {}


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on tensors of the CPU: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Run kernel[grid](*arguments, **constants) on the device of the first argument."""
    device = arguments[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(kernel, grid, arguments, constants, device.index)
    else:
        _launch(kernel, grid, arguments, constants, device.index)


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    device: int | None,
) -> None:
    if interpreted():
        kernel[grid](*arguments, **constants)
        return
    kinds = tuple((a.dtype, a.data_ptr() % 16 == 0) if isinstance(a, Tensor) else type(a) for a in arguments)
    key = kernel, device, kinds, *constants.values()
    compiled = _compiled.get(key)
    grid = (*grid, 1, 1)[:3]
    if compiled is None:
        _compiled[key] = kernel[grid](*arguments, **constants, **OPTIONS)
    else:
        compiled[grid](*arguments, *constants.values())
