"""One file in a process of its own, under a limit on its time: what it judged, and why it did not judge the rest.

A process reports by lines of JSON in a file, so that what was judged before it ended is kept. If it ends before the
file is imported, a second one takes the functions from the syntax tree.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from xhat.lens.checker.calling.adapter import Adapter
from xhat.lens.checker.files.judge import judged
from xhat.lens.checker.files.limits import bound_memory, bound_processes, family, kill
from xhat.lens.checker.files.verdicts import Verdicts, revived
from xhat.lens.checker.verdict import Verdict

__all__ = ["Child", "Request", "child", "supervise"]

_POLL = 0.01  # seconds
_COUNT = 0.25  # seconds between two counts of processes
_PROCESSES = 64
_PRINTED = 64 << 20  # bytes that code may print
_KEPT = 20_000  # of them that are shown
_IMPORT = 0.5  # share of the time limit that an import may take


@dataclass(frozen=True)
class Request:
    """A file, the options of `judged`, and the limits: seconds and gigabytes."""

    path: str
    options: dict[str, Any]
    time_limit: float
    memory: float

    def as_json(self) -> str:
        return json.dumps(asdict(self) | {"options": {k: _plain(v) for k, v in self.options.items()}})

    @classmethod
    def from_json(cls, text: str) -> "Request":
        data = json.loads(text)
        adapter = data["options"].get("adapter")
        if adapter is not None:
            tuples = ("forward_returns", "backward_returns")
            adapter |= {name: None if adapter[name] is None else tuple(adapter[name]) for name in tuples}
            data["options"]["adapter"] = Adapter(**adapter)
        return cls(**data)


def _plain(value: Any) -> Any:
    return asdict(value) if isinstance(value, Adapter) else value


class Child(Protocol):
    """A process that runs `child`, as `os.fork` or `subprocess` made it."""

    pid: int

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""


Start = Callable[[str, str, dict[str, Any]], Child]


def child(folder: str, request: str, more: dict[str, Any]) -> None:
    """What the process does: judge the file, with a line in `results` for each step; then end at once."""
    asked = Request.from_json(request)
    results = os.open(Path(folder) / "results", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def step(what: str, value: Any) -> None:
        data = asdict(value) if what in ("file", "verdict") else value
        os.write(results, (json.dumps([what, data], default=str) + "\n").encode())

    try:
        bound_memory(asked.memory)
        bound_processes(2 * _PROCESSES)
        judged(Path(asked.path), step=step, **(asked.options | more))
        step("done", None)
    except BaseException as error:
        step("raised", f"raised {type(error).__name__}")
    finally:
        os._exit(0)  # threads of the code, and what it registered for the end, don't run


@dataclass
class Seen:
    """What the processes of one file have reported."""

    pairs: list[str] | None = None
    file: Verdicts | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)  # the pairs of these verdicts
    raised: str | None = None
    done: bool = False

    def read(self, lines: list[str]) -> None:
        for what, data in map(json.loads, lines):
            if what == "pairs":
                self.pairs = data
            elif what == "file":
                self.file = revived(Verdicts, data)
            elif what == "verdict":
                self.add(revived(Verdict, data))
            elif what == "raised":
                self.raised = data
            self.done = what == "done"

    def waiting(self) -> list[str]:
        """The pairs without a verdict; the first of them was being judged."""
        return [pair for pair in self.pairs or [] if pair not in self.judged]

    def add(self, verdict: Verdict) -> None:
        self.judged += self.waiting()[:1]
        self.verdicts.append(verdict)


def supervise(request: Request, start: Start) -> Verdicts:
    """The verdicts of a file, judged in processes that `start` starts; ends them, and all that they have started."""
    seen, end = Seen(), time.monotonic() + request.time_limit
    more = {key: value for key, value in request.options.items() if key == "by_syntax"}
    output = ""
    while not seen.done:
        with TemporaryDirectory(prefix="xhat-check-", ignore_cleanup_errors=True) as folder:
            imported_by = None if more.get("by_syntax") else end - (1 - _IMPORT) * request.time_limit
            reason = _watch(folder, start(folder, request.as_json(), more), seen, end, imported_by, request)
            output = _printed(folder)
        if seen.done:
            break
        if seen.pairs is None and "by_syntax" not in more:
            more["by_syntax"] = reason
        elif seen.pairs is None:
            seen.file = Verdicts(Path(request.path).name, problem=f"its import {reason}")
            break
        elif seen.waiting():
            seen.add(Verdict(seen.waiting()[0], problem=f"it {reason}."))
            more["done"] = seen.judged
            if time.monotonic() > end:
                for pair in seen.waiting():
                    seen.add(Verdict(pair, problem="the time limit was reached before its turn."))
                break
        else:
            break
    file = Verdicts(Path(request.path).name) if seen.file is None else seen.file
    return replace(file, verdicts=tuple(seen.verdicts), output=output)


def _watch(
    folder: str, process: Child, seen: Seen, end: float, imported_by: float | None, request: Request
) -> str:
    """Wait for the end of a process, and end it at its limits. Returns how it ended, as the rest of a sentence."""
    results, read, counted = Path(folder) / "results", 0, time.monotonic()
    reason = None
    while reason is None:
        ended = process.poll()
        data = results.read_bytes()[read:] if results.exists() else b""
        lines = data[: data.rfind(b"\n") + 1]
        read += len(lines)
        seen.read(lines.decode().splitlines())
        now = time.monotonic()
        if ended is not None:
            reason, seen.raised = seen.raised or _ending(ended), None
        elif now > end or (imported_by is not None and now > imported_by and seen.pairs is None):
            reason = f"ran past the time limit of {request.time_limit:g} s"
        elif _size(folder) > _PRINTED:
            reason = f"printed more than {_PRINTED >> 20} MB"
        elif now > counted + _COUNT:
            counted = now
            if len(family(process.pid)) > _PROCESSES:
                reason = f"started more than {_PROCESSES} processes"
        if reason is None:
            time.sleep(_POLL)
    kill(process.pid)
    while process.poll() is None:
        time.sleep(_POLL)
    return reason


def _ending(status: int) -> str:
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by the signal {signal.Signals(-status).name}"
        return f"was ended by signal {-status}"
    return f"ended the process with status {status}"


def _size(folder: str) -> int:
    with contextlib.suppress(OSError):
        return (Path(folder) / "output").stat().st_size
    return 0


def _printed(folder: str) -> str:
    """The first part of what the code printed."""
    try:
        with (Path(folder) / "output").open("rb") as file:
            text = file.read(_KEPT + 1).decode("utf-8", "replace")
    except OSError:
        return ""
    return text if len(text) <= _KEPT else f"{text[:_KEPT]}… (more was printed)"
