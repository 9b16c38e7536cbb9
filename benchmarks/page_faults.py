"""`python -m benchmarks.page_faults`: what the first write of a large tensor costs, by small and by huge pages.

Fresh blocks above 32 MB are mapped by glibc for each tensor, and each of their pages is faulted in when it is written.
"""

import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from xhat.torch.memory import ask_for_huge_pages

__all__ = ["main", "milliseconds"]

CHOICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def milliseconds(size: int, huge: bool) -> float:
    """To allocate, fill and free a tensor of `size` bytes."""
    begun = time.perf_counter()
    tensor = torch.empty(size, dtype=torch.uint8)
    if huge:
        ask_for_huge_pages(tensor.data_ptr(), size)
    tensor.fill_(1)
    del tensor
    return 1e3 * (time.perf_counter() - begun)


def main(rounds: int = 15) -> None:
    """Print the medians of `rounds` interleaved rounds."""
    table = Table("MB", "small pages", "huge pages", "gain")
    for size in (40 << 20, 100 << 20, 200 << 20):
        times = np.array([[milliseconds(size, huge) for huge in (False, True)] for _ in range(rounds)])
        small, huge = np.median(times, axis=0)
        table.add_row(f"{size >> 20}", f"{small:.1f} ms", f"{huge:.1f} ms", f"{small / huge:.1f}x")
    console = Console()
    choice = CHOICE.read_text().strip() if CHOICE.exists() else "not on this system"
    console.print(f"transparent huge pages: {choice}; {torch.get_num_threads()} threads", markup=False)
    console.print(table)


if __name__ == "__main__":
    main()
