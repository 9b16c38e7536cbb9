"""Limits on a process that runs somebody's code: its memory, and its end together with all processes that it started.

What the operating system does not offer is left out: memory is bounded on Linux, and outside of Linux a process that
left the group of its parent is not found.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

__all__ = ["adopt_orphans", "bound_memory", "bound_processes", "family", "kill"]

_LINUX = sys.platform == "linux"
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


def bound_memory(gigabytes: float) -> None:
    """Bound the private memory of this process (not mapped files, like libraries), and write no core dump."""
    if not _LINUX:
        return
    import resource

    most = int(gigabytes * 2**30)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def bound_processes(more: int) -> None:
    """Bound the processes and threads of this user to those that there are and `more`; root has no such bound."""
    if not _LINUX or os.getuid() == 0:
        return
    import resource

    count = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            count += int(lines["Threads"]) if int(lines["Uid"].split()[0]) == os.getuid() else 0
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = count + more if hard == resource.RLIM_INFINITY else min(count + more, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, hard))


def adopt_orphans() -> None:
    """Make this process the parent of processes whose parent has ended, so that `family` finds them."""
    if _LINUX:
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def family(pid: int) -> set[int]:
    """The processes of the group that `pid` leads, their descendants, and orphans that this process has adopted."""
    if not _LINUX:
        return set()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                state, parent, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if state not in "ZX":
                    parents[int(entry.name)] = int(parent)
                    if int(group) == pid:
                        found.add(int(entry.name))
    own = os.getpid()
    grown = True
    while grown:
        more = {p for p, parent in parents.items() if parent in found or (parent == own and p != pid)} - found
        found |= more
        grown = bool(more)
    return found


def kill(pid: int) -> None:
    """End a process that leads a group, its group, and everything in its family."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(pid)], capture_output=True, check=False)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for _ in range(100):  # each round finds what was started during the last one
        rest = family(pid)
        for one in rest:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(one, signal.SIGKILL)
        if not rest:
            return
