"""Runs kernels: compiles each once for each combination of constants, dtypes and alignments, and launches it.

Triton's own launch reads and specializes every argument, which takes five times as long as launching the compiled
kernel that it returns. The key below has everything that a compilation depends on.
"""

import os
from typing import Any

import torch

__all__ = ["INTERPRETED", "OPTIONS", "launch", "launch_all"]

# Without fusion, so that the forward and the backward pass compute the same bits; fma is written where it is wanted.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}

_compiled: dict[Any, Any] = {}

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's interpreter runs the kernels, for tests


Launch = tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]  # the arguments of `launch`


def launch(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """Run kernel[grid](*arguments, **constants) on the device of the first argument, in its current stream.

    The tensors are the first arguments. All numbers are int32, or float64 by annotation, so none is part of the key.
    """
    launch_all((kernel, grid, arguments, constants))


def launch_all(*launches: Launch) -> None:
    """`launch` each in this order, on one device.

    All are compiled before the first is launched: if a compilation fails, none of them has written anything.
    """
    _, _, (first, *_), _ = launches[0]
    device = first.device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            _launch(launches, device.index)
    else:
        _launch(launches, device.index)


def _launch(launches: tuple[Launch, ...], device: int | None) -> None:
    if INTERPRETED:
        for kernel, grid, arguments, constants in launches:
            kernel[grid](*arguments, **constants)
        return
    ready = [_ready(*one, device) for one in launches]
    for run, (_, _, arguments, constants) in zip(ready, launches, strict=True):
        run(*arguments, *constants.values())


def _ready(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: tuple[Any, ...],
    constants: dict[str, Any],
    device: int | None,
) -> Any:
    """What launches the compiled kernel, which is on the device then."""
    tensors = arguments[: kernel.tensors]
    key = (
        id(kernel),
        device,
        *[t.dtype for t in tensors],
        *[t.data_ptr() & 15 == 0 for t in tensors],
        (*constants.values(),),
    )
    compiled = _compiled.get(key)
    if compiled is None:
        compiled = _compiled[key] = kernel.warmup(*arguments, grid=grid, **constants, **OPTIONS)
    return compiled[(*grid, 1, 1)[:3]]
