"""Builds floor.cpp with the system's compiler and runs it on buffers of a case's size.

No batch normalization lives here: these are the times below which memory lets nothing go.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Floor"]

SOURCE = Path(__file__).with_name("floor.cpp")
BUILD = SOURCE.parents[2] / "build" / "benchmarks"
# Without the last flag the plain loop becomes memcpy, which uses non-temporal stores when it sees fit.
FLAGS = [
    "-O3",
    "-march=native",
    "-std=c++17",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-fno-tree-loop-distribute-patterns",
]
LINE = 64


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    """The compiled floor, built once per source and flags. Raises RuntimeError without a compiler for it."""
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((found for name in compilers if name and (found := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError(
            "floor: no C++ compiler was found, expected c++, g++ or clang++; install one or set CXX."
        )
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join([compiler, *FLAGS]).encode()).hexdigest()[:12]
    target = BUILD / f"floor-{key}.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_suffix(f".{os.getpid()}")
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(unfinished)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(
                f"floor: {compiler} failed, expected one that knows OpenMP. {ended.stderr[-500:]}"
            )
        unfinished.replace(target)
    return ctypes.CDLL(str(target))


def _aligned(count: int, fill: float) -> NDArray[np.float32]:
    room = np.full(count + LINE // 4, fill, np.float32)
    start = (-room.ctypes.data % LINE) // 4
    return room[start : start + count]


class Floor:
    """Copy and triad over arrays of `nbytes` (rounded up to whole lines), each plain and non-temporal."""

    def __init__(self, nbytes: int, threads: int) -> None:
        count = -(-nbytes // LINE) * LINE // 4
        self.a, self.b, self.to = _aligned(count, 1.0), _aligned(count, 2.0), _aligned(count, np.nan)
        self.threads = threads

    def _call(self, name: str, sources: list[NDArray[np.float32]]) -> Callable[[], Any]:
        function = getattr(_library(), name)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*sources, self.to)]
        count = ctypes.c_ssize_t(self.to.size)
        threads = ctypes.c_int(self.threads)
        return lambda: function(*pointers, count, threads)

    def calls(self, what: str) -> dict[str, Callable[[], Any]]:
        """The floors of a pass by name, checked: of the forward a copy, of the backward a triad."""
        kind, sources, expected = {
            "forward": ("copy", [self.a], 1.0),
            "backward": ("triad", [self.a, self.b], 2.0),
        }[what]
        found = {}
        for name, symbol in ((kind, kind), (f"{kind} NT", f"{kind}_stream")):
            call = self._call(symbol, sources)
            self.to.fill(np.nan)
            call()
            if not np.all(self.to == expected):
                raise RuntimeError(f"floor: {name} wrote wrong values, expected {expected} everywhere.")
            found[name] = call
        return found
