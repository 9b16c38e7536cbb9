"""NumPy arrays as torch tensors on the same memory, and back."""

from typing import Any

import numpy as np

from benchmarks.harness.problem import Array

__all__ = ["from_tensor", "tensor_on"]


def tensor_on(array: Array, layout: str = "") -> Any:
    """A tensor on the array's own memory, bfloat16 included; NHWC memory becomes torch's channels_last."""
    import torch

    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.permute(0, 3, 1, 2) if layout == "NHWC" and array.ndim == 4 else tensor


def from_tensor(tensor: Any, layout: str) -> Array:
    """The tensor as float32 in the order of memory that `tensor_on` was given."""
    tensor = tensor.detach().float()
    found: Array = (tensor.permute(0, 2, 3, 1) if layout == "NHWC" and tensor.ndim == 4 else tensor).numpy()
    return found
