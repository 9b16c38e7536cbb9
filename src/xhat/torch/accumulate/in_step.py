"""Walkers: functions that run in turn and wait for one another at each batch norm, for the values of all of them.

Each walker has a thread, of which only one runs at a time, in a fixed order, between the conductor's calls of `resume`;
so nothing depends on the scheduler. What is computed must never live here.
"""

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xhat.errors import ArgumentError
from xhat.torch.operators import Where
from xhat.torch.sync import frames
from xhat.torch.sync.frames import Array, FrameHeader
from xhat.torch.sync.header import described
from xhat.torch.sync.merge import added
from xhat.torch.sync.shared_batch import exchange, merged_row

__all__ = ["ALONE", "Walker", "random_states", "set_random_states", "walk", "walking"]

# In place of a process group's name: the batch is that of all walkers, and of no other rank.
ALONE = "in step"


class Meeting(NamedTuple):
    """Where a walker waits: what it brings, and what that is."""

    values: Array
    header: FrameHeader
    where: Where


class Abandoned(BaseException):
    """Ends a walker that waits, where another one has failed."""


class Walker:
    """One function, run up to its next meeting by each call of `resume`."""

    def __init__(self, run: Callable[[], None], seed: int, last: bool) -> None:
        self.run, self.last = run, last  # the last one moves the running statistics
        self.kept: dict[
            str, list[tuple[Array, Array]]
        ] = {}  # of each layer: own and all statistics of its calls
        self.error: BaseException | None = None
        self._meeting: Meeting | None = None
        self._answer: Array | None = None
        self._abandoned = False
        self._go, self._stop = threading.Semaphore(0), threading.Semaphore(0)
        self._settings, self._randomness = Settings(), Randomness(seed)
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=context.run, args=(self._main,), daemon=True)

    # ------------------------------------------------------------------------------------------ the conductor's side

    def resume(self, answer: Array | None) -> Meeting | None:
        """Runs up to the next meeting, or to the end: None. Raises what the function has raised."""
        self._answer, self._meeting = answer, None
        with self._randomness.exchanged():
            if self.thread.ident is None:
                self.thread.start()
            else:
                self._go.release()
            self._stop.acquire()
        if self.error is not None:
            raise self.error
        return self._meeting

    def abandon(self) -> None:
        """Ends the function where it waits."""
        if self.thread.is_alive():
            self._abandoned = True
            self._go.release()
            self.thread.join()

    # --------------------------------------------------------------------------------------------- the walker's side

    def _main(self) -> None:
        exchange.set(self)
        try:
            with self._settings.restored():
                self.run()
        except Abandoned:
            pass
        except BaseException as error:
            self.error = error
        finally:
            del self.run  # and the micro-batch with it
            self._stop.release()

    def gather(self, values: Array, header: FrameHeader, where: Where) -> Array:
        """`shared_batch.Exchange`: the values of all walkers, merged; those of the first time in a repeated pass."""
        if header.recomputed:
            known = self.kept[header.layer]
            return min(known, key=lambda pair: float(np.abs(pair[0] - values).max()))[1]
        self._meeting = Meeting(values, header, where)
        self._stop.release()
        self._go.acquire()
        if self._abandoned:
            raise Abandoned
        assert self._answer is not None
        if header.kind == "statistics":
            self.kept.setdefault(header.layer, []).append((values, self._answer))
        return self._answer


def walking() -> Walker | None:
    """The walker that runs the caller."""
    found = exchange.get()
    return found if isinstance(found, Walker) else None


def walk(walkers: Sequence[Walker]) -> None:
    """Runs all walkers to their end. If one raises, the others are ended, and so they are if this is interrupted."""
    answer: Array | None = None
    try:
        while True:
            meetings = [walker.resume(answer) for walker in walkers]
            here = [meeting for meeting in meetings if meeting is not None]
            if not here:
                return
            _check_same(meetings)
            answer = _together(here)
    finally:
        for walker in walkers:
            walker.abandon()


def _check_same(meetings: list[Meeting | None]) -> None:
    """Raises ArgumentError unless all walkers wait at the same layer."""
    first = meetings[0]
    for k, other in enumerate(meetings):
        if (first and first.header) != (other and other.header):
            a, b = (_place(m) for m in (first, other))
            raise ArgumentError(
                f"accumulate: micro-batch 0 is at {a} and micro-batch {k} at {b}, expected the same batch norms in the "
                "same order. Let no batch norm's call depend on the data, and give all micro-batches the same dtype."
            )


def _place(meeting: Meeting | None) -> str:
    return "its end" if meeting is None else described(meeting.header)


def _together(meetings: list[Meeting]) -> Array:
    """What all walkers bring as one row, or as one row of each rank where ranks share the batch."""
    rows = np.stack([meeting.values for meeting in meetings])
    _, header, where = meetings[0]
    row = merged_row(rows) if header.kind == "statistics" else added(rows)
    return row[None] if where.group == ALONE else frames.gather(row, header, where.group or "", where.batches)


# ------------------------------------------------------------------------------------------ what belongs to a thread


class Randomness:
    """The random states of a walker, in place of the process's while it runs."""

    def __init__(self, seed: int) -> None:
        self.seed: int | None = seed
        self.states: list[Tensor] = []

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """The walker's random states inside, the others outside."""
        before = random_states()
        if self.seed is not None:
            torch.manual_seed(self.seed)
            self.seed = None
        else:
            set_random_states(self.states)
        try:
            yield
        finally:
            self.states = random_states()
            set_random_states(before)


def _devices() -> list[Any]:
    return [torch, *(kind for kind in (torch.cuda, torch.xpu) if kind.is_initialized())]


def random_states() -> list[Tensor]:
    """torch's, of the CPU and of the accelerators in use."""
    return [kind.get_rng_state() for kind in _devices()]


def set_random_states(states: list[Tensor]) -> None:
    """Makes these the current ones."""
    for kind, state in zip(_devices(), states, strict=False):
        kind.set_rng_state(state)


class Settings:
    """What torch keeps for each thread: autocast, and the accelerator's device and stream."""

    def __init__(self) -> None:
        self.accelerator = torch.accelerator.current_accelerator(check_available=True)
        kinds = ["cpu", *([self.accelerator.type] if self.accelerator is not None else [])]
        self.autocast = [(k, torch.get_autocast_dtype(k), torch.is_autocast_enabled(k)) for k in kinds]
        if self.accelerator is not None:
            self.stream = torch.accelerator.current_stream()

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The same in this thread. Casts are not cached: another walker's would be part of this one's graph."""
        with ExitStack() as stack:
            if self.accelerator is not None:
                torch.accelerator.set_stream(self.stream)  # and its device
            for kind, dtype, enabled in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled, cache_enabled=False))
            # The backward pass of an accelerator runs in this thread too, where it can wait.
            stack.enter_context(torch.autograd.set_multithreading_enabled(False))
            yield
