"""The memory behind tensors: storages that were resized, and huge pages for large results.

No kernel is called here.
"""

import ctypes
import mmap
import sys
from functools import lru_cache
from operator import is_
from typing import Any

import torch
from torch import Tensor

from xhat.checks import shown
from xhat.torch.errors import TensorArgumentError
from xhat.torch.internals import batched, plain

__all__ = ["LARGE", "ask_for_huge_pages", "check_memory", "within_memory"]

LARGE = 4 << 20  # bytes from which a result is worth a huge page; NumPy has the same limit for its own arrays


def check_memory(*tensors: Tensor | None) -> None:
    """Raises TensorArgumentError for a tensor whose storage was resized and ends before the tensor."""
    for t in tensors:
        if t is not None and plain(t) and not batched(t) and not _in_memory(t):
            raise TensorArgumentError(
                f"batch_norm: a tensor {shown(t.shape)} reaches beyond its storage of {len(t.untyped_storage())} "
                "bytes, expected one that has all of its elements. Resize the storage back first."
            )


def within_memory(error: Exception, *tensors: Tensor | None) -> tuple[Any, ...]:
    """Copies of tensors without an address (known to be zero) or at a misaligned one, which the kernels refuse.

    Raises TensorArgumentError for another reason: a storage was resized, or the plan of a graph exchanged.
    """
    check_memory(*tensors)
    found = tuple(t if t is None or _aligned(t) else torch.empty_like(t).copy_(t) for t in tensors)
    if all(map(is_, found, tensors)):
        raise TensorArgumentError(
            f"batch_norm: {error}. What a graph has saved has to stay as it is until the backward pass."
        ) from error
    return found


def _in_memory(t: Tensor) -> bool:
    """Whether a plain tensor has all of its elements in memory: its storage can be resized while it lives.

    torch's own operations then read beyond it. A tensor that is known to be zero has no memory, and they know it.
    """
    if not t.numel() or t._is_zerotensor():
        return True
    dense = t.is_contiguous()
    reach = t.numel() if dense else 1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return (t.storage_offset() + reach) * t.itemsize <= len(t.untyped_storage())


def _aligned(t: Tensor) -> bool:
    """Whether the elements of a plain tensor, if it has any, are at an address of their dtype."""
    return not t.numel() or (t.data_ptr() != 0 and not t.data_ptr() % t.itemsize)


def ask_for_huge_pages(address: int, size: int) -> None:
    """Advises Linux to back this newly allocated block with huge pages (madvise with MADV_HUGEPAGE).

    A fault then maps 2 MB in place of 4 kB. It takes effect where transparent huge pages are set to "madvise", the
    default of most distributions. Nothing happens on other systems, and to pages that are mapped already. The call is
    worth its time for blocks that are LARGE.
    """
    if (advise := _madvise()) is None:
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    advise(first, (address + size - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """C's madvise; None where it has no huge pages."""
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise: Any = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise
