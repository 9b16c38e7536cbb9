"""Many files, each in a process of its own, a few at a time."""

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xhat.lens.checker.files.limits import kill
from xhat.lens.checker.files.supervise import Child, Request, supervise
from xhat.lens.checker.files.verdicts import Verdicts, revived
from xhat.lens.checker.files.worker import ENVIRONMENT, interpreter, spawn

__all__ = ["judge_files"]

# Elsewhere libraries of the system don't survive a fork, or there is none.
_FORKS = sys.platform == "linux"


def _cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """A process that judges one file after the other; started again if it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._child: Child | None = None  # of the file that is judged, where nothing forks
        self._closed = False

    def judge(self, request: Request) -> Verdicts:
        if not _FORKS:
            try:
                return supervise(request, self._spawn)
            except InterruptedError:
                return Verdicts(Path(request.path).name, problem="it was interrupted.")
        process = self._process or self._start()
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        answer = ""
        with contextlib.suppress(OSError):
            process.stdin.write(request.as_json() + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        if not answer:
            self._end()
            return Verdicts(
                Path(request.path).name, problem="the process that judges it was ended from outside."
            )
        found: Verdicts = revived(Verdicts, json.loads(answer))
        return found

    def _spawn(self, folder: str, request: str, more: dict[str, Any]) -> Child:
        if self._closed:
            raise InterruptedError
        self._child = spawn(folder, request, more)
        if self._closed:  # in the meantime
            kill(self._child.pid)
        return self._child

    def _start(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            interpreter("from xhat.lens.checker.files.worker import serve; serve()"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )

    def close(self) -> None:
        """End the process, and the file that it judges."""
        self._closed = True
        if self._child is not None and self._child.poll() is None:
            kill(self._child.pid)
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
            self._process = None


def judge_files(
    paths: Sequence[Path], *, time_limit: float, memory: float, processes: int | None, options: dict[str, Any]
) -> Iterator[Verdicts]:
    """The verdicts of each file, in order, as they come."""
    count = max(1, min(processes or _cores(), len(paths)))
    workers = [Worker() for _ in range(count)]
    free: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    for worker in workers:
        free.put(worker)

    def judge(path: Path) -> Verdicts:
        worker = free.get()
        try:
            return worker.judge(Request(str(path), options, time_limit, memory))
        finally:
            free.put(worker)

    threads = ThreadPoolExecutor(count)
    try:
        yield from threads.map(judge, paths)
    finally:
        for worker in workers:
            worker.close()
        threads.shutdown(cancel_futures=True)
