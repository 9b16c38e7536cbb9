"""Runs a kernel: compiles it once for each combination of constants, dtypes and alignments, and launches it.

Triton's own launch reads and specializes every argument, which takes five times as long as launching the compiled
kernel that it returns. The key below has everything that a compilation depends on.
"""

import os
from typing import Any

import torch

__all__ = ["INTERPRETED", "OPTIONS", "launch"]

# Without fusion, so that the forward and the backward pass compute the same bits; fma is written where it is wanted.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

_compiled: dict[Any, Any] = {}


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs the kernels, for tests


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Run kernel[grid](*arguments, **constants) on the device of the first argument, in its current stream.

    The tensors are the first arguments. All numbers are int32, or float64 by annotation, so none is part of the key.
    """
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
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    tensors = arguments[: kernel.tensors]
    values = (*constants.values(),)
    key = (
        id(kernel),
        device,
        *[t.dtype for t in tensors],
        *[t.data_ptr() & 15 == 0 for t in tensors],
        values,
    )
    compiled = _compiled.get(key)
    grid = (*grid, 1, 1)[:3]
    if compiled is None:
        _compiled[key] = kernel[grid](*arguments, **constants, **OPTIONS)
    else:
        compiled[grid](*arguments, *values)
