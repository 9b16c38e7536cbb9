"""Huge pages for large results, whose page faults would cost more than the kernels. No tensor or kernel lives here."""

import ctypes
import mmap
import sys
from functools import lru_cache
from typing import Any

__all__ = ["LARGE", "ask_for_huge_pages"]

LARGE = 4 << 20  # bytes from which a result is worth a huge page; NumPy has the same limit for its own arrays


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
