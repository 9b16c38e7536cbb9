"""Page faults, which cost a large tensor more than any kernel: huge pages for our results, recycled memory for all.

No tensor and no kernel live here. What `reuse_memory` gains is torch's as much as ours.
"""

import ctypes
import mmap
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

__all__ = ["MemoryReuse", "ask_for_huge_pages", "reuse_memory"]

LARGE = 4 << 20  # bytes from which a result is worth a huge page, as NumPy has it for its own arrays

# The parameters of glibc's mallopt by name: (number, value). Blocks from mmap go back to the system when they are
# freed, so there must be none; a threshold above every size does the same, but older versions refuse one above 32 MB.
SETTINGS = {
    "M_MMAP_MAX": (-4, 0),
    "M_TRIM_THRESHOLD": (-1, -1),  # never give the end of the heap back
    "M_TOP_PAD": (-2, 64 << 20),  # grow it by so much more than what is asked for, to grow it rarely
}


@dataclass(frozen=True, repr=False)
class MemoryReuse:
    """What `reuse_memory` did: the settings that it made, and the reason for those that it did not make."""

    settings: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    @property
    def active(self) -> bool:
        """Whether freed memory is kept."""
        return self.settings.keys() == SETTINGS.keys()

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        if not self.active:
            return f"reuse_memory: {settings or 'nothing'} was set: {self.reason}"
        return (
            f"reuse_memory: freed memory stays with the process (mallopt: {settings}). Its resident memory "
            f"does not shrink below its peak, by now {_peak_megabytes()} MB; fragments can raise that peak."
        )


@lru_cache(maxsize=1)
def reuse_memory() -> MemoryReuse:
    """Keep freed memory in this process, for good, instead of returning large blocks to the operating system.

    On Linux a large block is mapped afresh for every tensor, and each of its pages is faulted in when it is first
    written, which takes longer than any kernel needs to fill it. Afterwards blocks are recycled, by torch, NumPy and
    every other user of malloc; the first few steps still fault, until the blocks have found their places.

    It costs resident memory: what was once in use is never given back, and blocks of many sizes leave gaps. A large
    ``numpy.zeros``, which is free while its pages come fresh from the system, has to be written. Blocks that
    threads other than the main one allocate are not recycled where they are larger than a heap of theirs (64 MB).

    Returns a report to print. With another C library than glibc, or with another malloc in its place, nothing is
    changed, and the report says why. A second call changes nothing. Nothing is raised.
    """
    try:
        library: Any = ctypes.CDLL(None)
        known = library.gnu_get_libc_version
    except (AttributeError, OSError, TypeError):
        return MemoryReuse(reason="this is not glibc, and other C libraries have no such settings.")
    home, mine = _file_of(library, known), _file_of(library, library.malloc)
    if home != mine:
        return MemoryReuse(
            reason=f"malloc is not glibc's, but that of {mine}, which has settings of its own."
        )
    made = {name: value for name, (number, value) in SETTINGS.items() if library.mallopt(number, value)}
    refused = ", ".join(name for name in SETTINGS if name not in made)
    return MemoryReuse(made, f"glibc refused {refused}." if refused else "")


def ask_for_huge_pages(address: int, size: int) -> None:
    """Let what was just allocated be faulted in by huge pages where the system leaves the choice to the program.

    Linux with transparent huge pages at "madvise", as most distributions set it: 2 MB a fault in place of 4 kB. Nothing
    happens elsewhere, or to pages that are there already. It is worth its time for blocks that are LARGE.
    """
    if (advise := _madvise()) is None:
        return
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    advise(first, (address + size - first) // mmap.PAGESIZE * mmap.PAGESIZE, mmap.MADV_HUGEPAGE)


@lru_cache(maxsize=1)
def _madvise() -> Any:
    """C's madvise, where huge pages can be asked for."""
    if not sys.platform.startswith("linux") or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise: Any = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return advise


class _Place(ctypes.Structure):
    """Dl_info of dladdr."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("file_address", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("symbol_address", ctypes.c_void_p),
    )


def _file_of(library: Any, function: Any) -> str:
    """The file that a C function was loaded from: a preloaded malloc is not where the rest of the library is."""
    place = _Place()
    found = library.dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(place))
    return (place.file or b"").decode(errors="replace") if found else "an unknown file"


def _peak_megabytes() -> int:
    import resource  # not everywhere, but where glibc is

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10  # Linux counts kilobytes
