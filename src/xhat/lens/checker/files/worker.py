"""A process that has imported NumPy and the checker, and forks for each file: a line of JSON in, a line of JSON out.

Where there is no fork, `spawn` starts an interpreter for each file. Nothing is judged here.
"""

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from xhat.lens.checker.files.limits import adopt_orphans, kill
from xhat.lens.checker.files.supervise import Child, Request, child, supervise

__all__ = ["ENVIRONMENT", "interpreter", "serve", "spawn"]

# One thread is enough for small arrays, and a fork keeps no threads; plots open no window.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "MPLBACKEND": "agg",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compilation is most of the time on small arrays
    "PYTHONUNBUFFERED": "1",  # what is printed before a crash is kept
}


class Forked:
    """A forked process, as a Child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif os.getppid() != _PARENT:  # whoever asked has gone
                _leave()
        return self._status


_PARENT = os.getppid()
_running: list[int] = []


def _leave(*_: Any) -> None:
    for pid in _running:
        kill(pid)
    _reap()
    raise SystemExit(1)  # which removes the folder of the file that was judged


def _reap() -> None:
    """Read the status of all processes that have ended, orphans among them: nobody else would."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def serve() -> None:
    """Judge the files that the lines of the standard input ask for, until it ends."""
    warnings.simplefilter("ignore")
    sys.dont_write_bytecode = True  # leave no caches beside somebody's files
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asks decides
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    sys.stdin = os.fdopen(os.dup(nothing))
    adopt_orphans()

    def fork(folder: str, request: str, more: dict[str, Any]) -> Child:
        pid = os.fork()
        if pid == 0:
            for stream in (requests, answers):
                os.close(stream.fileno())
            _become(folder, request, more)
        _running[:] = [pid]
        return Forked(pid)

    for line in requests:
        request = Request.from_json(line)
        _preload(request.path)
        verdicts = supervise(request, fork)
        _reap()
        answers.write(json.dumps(asdict(verdicts), default=str) + "\n")
        answers.flush()


def _preload(path: str) -> None:
    """Import PyTorch once for all files that use it; JAX has threads that a fork would lose."""
    with suppress(Exception):
        if "torch" not in sys.modules and re.search(rb"\b(torch|keepdim)\b", Path(path).read_bytes()):
            import_module("torch")


def _become(folder: str, request: str, more: dict[str, Any]) -> None:
    """Go on as the process of one file: a group of its own, no input, output into a file."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setsid()
    output = os.open(Path(folder) / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(output, standard)
    child(folder, request, more)


def spawn(folder: str, request: str, more: dict[str, Any]) -> Child:
    """The process of one file as a new interpreter."""
    code = f"from xhat.lens.checker.files.supervise import child; child({folder!r}, {request!r}, {more!r})"
    with (Path(folder) / "output").open("wb") as output:
        return subprocess.Popen(
            interpreter(code),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=os.environ | ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "1"},
        )


def interpreter(code: str) -> list[str]:
    """A command for this Python with this path, without the folder in which it starts: that may hold any module."""
    paths = [path for path in sys.path if path]
    return [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {paths!r}; {code}"]
