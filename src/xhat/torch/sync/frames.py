"""The exchange between ranks: the values of each rank reach all ranks in one collective, which can't be misread.

A collective needs buffers of equal size on all ranks: with gloo, unequal ones hang, abort the process or mix up values.
But ranks may be about to send different things. So the size of a buffer, called a frame, never depends on what this
rank sends, only on what all ranks have agreed on before:

    frame      header (16 words of 8 bytes), then room for `capacity` values
    capacity   the most values that any exchange has sent which came after the same exchange as this one; 0 at first

If the values do not fit, the frame has its header alone, which contains their number, and a second frame of the right
size follows, on all ranks alike. From then on one frame is enough. The header also describes the values (layer, number
of channels, dtype, ...). If the headers of the ranks differ, all ranks raise an error and use none of the values. A
rank that can't send values sends a header that says so. The exchanges use a private copy of the process group.
No statistics are computed here.
"""

import weakref
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from time import sleep
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from xhat.torch.errors import ExchangeError
from xhat.torch.internals import device_of, untransformed
from xhat.torch.sync import groups
from xhat.torch.sync.header import (
    STOPPED,
    TWO_THREADS,
    WORDS,
    Array,
    FrameHeader,
    described,
    disagreement,
    failed,
    packed,
)

__all__ = [
    "Array",
    "FrameHeader",
    "announce_failure",
    "gather",
    "gather_on_device",
    "takes",
]

# torch renames all_gather_into_tensor, and warns of the old name where there is the other.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))


_sessions: "weakref.WeakKeyDictionary[Any, Session]" = weakref.WeakKeyDictionary()
_making_a_session = Lock()


def gather(values: Array, header: FrameHeader, group: str, batches: int = -1) -> Array:
    """The values (k,) of every rank, as (ranks, k); float64. The result is the same on all ranks.

    batches: num_batches_tracked of the header's layer, which ranks compare; -1 if it is unknown.
    Raises ExchangeError on every rank if their headers differ, and if the collective fails.
    """
    return _session(group).gather(values, header, batches)


def gather_on_device(values: Tensor, header: FrameHeader, group: str) -> Tensor:
    """As `gather`, for a tensor (k,) of float64 on a device for which `takes` is true: the host waits for nothing.

    The headers are compared on the device. If they differ, an assertion fails there, which ends the process.
    """
    return _session(group).gather_on_device(values, header)


def takes(device: torch.device, group: str) -> bool:
    """Whether tensors of this device are exchanged where they are: see `groups.takes`."""
    return device.type != "cpu" and groups.takes(groups.group_of(group), device)


class announce_failure:  # a function with @contextmanager takes several times as long
    """Surrounds what this rank computes before an exchange. If that raises, the other ranks get an error at once.

    Without it they would wait for this rank until the group's timeout. The block may end with the exchange: what raises
    after it is not announced. nested: another exchange follows those in the block, so what raises after these is
    announced.
    """

    def __init__(self, header: FrameHeader, group: str, nested: bool = False) -> None:
        self.header, self.group, self.nested = header, group, nested

    def __enter__(self) -> None:
        self.before = _progress(self.group)

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None or not issubclass(kind, _ANNOUNCED) or issubclass(kind, ExchangeError):
            return  # all ranks have raised an ExchangeError already
        now = _progress(self.group)
        if now == self.before or (self.nested and not now.stopped):
            with suppress(ExchangeError), untransformed():  # this rank raises its own error, which says more
                _session(self.group).abort(self.header)


# No GeneratorExit: it may come from the garbage collector, at any time.
_ANNOUNCED = (Exception, KeyboardInterrupt, SystemExit)


class Progress(NamedTuple):
    """How many collectives this process has started in a group, and whether the last one announced a failure."""

    collectives: int = 0
    stopped: bool = False


_NONE_YET = Progress()


def _progress(group: str) -> Progress:
    found = groups.group_or_none(group)
    session = None if found is None else _sessions.get(found)
    return _NONE_YET if session is None else session.progress


def _session(name: str) -> "Session":
    group = groups.group_of(name)
    groups.check_registered(group, name)
    session = _sessions.get(group)
    if session is None:
        with _making_a_session:
            session = _sessions.get(group)
            if session is None:
                session = _sessions[group] = Session(groups.private_copy(group))
    return session


class Session:
    """The exchanges of one process group in their order, which is the same on all ranks."""

    def __init__(self, group: Any) -> None:
        self.group = weakref.ref(group)
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.device = device_of(group)  # of the frames; that of `gather_on_device`, once there was one
        self.headers: dict[Any, Tensor] = {}
        self.lock = Lock()
        self.progress = Progress()
        self.interrupt: BaseException | None = None
        self.previous: FrameHeader | None = None
        # By the previous exchange: equal on all ranks.
        self.capacity_after: dict[FrameHeader | None, int] = {}

    def gather(self, values: Array, header: FrameHeader, batches: int) -> Array:
        """See `gather`. What a signal handler raises meanwhile (KeyboardInterrupt) is raised after the exchange."""
        frames: Array = self._in_turn(
            lambda room: self._all_gather(values, header, batches, room), len(values), header
        )
        return frames[:, WORDS : WORDS + len(values)]

    def gather_on_device(self, values: Tensor, header: FrameHeader) -> Tensor:
        """See `gather_on_device`. The first one after exchanges of the host has a frame of the host before it."""

        def exchanged(room: int) -> Tensor:
            if (
                self.device.type != values.device.type
            ):  # where a rank that has failed announces it: see `abort`
                self._all_gather(np.empty(0), header, -1, room)
                self.device = values.device
            return self._all_gather_on_device(values, header, room)

        frames: Tensor = self._in_turn(exchanged, len(values), header)
        return frames.narrow(1, WORDS, len(values))

    def _in_turn(self, exchanged: Callable[[int], Any], length: int, header: FrameHeader) -> Any:
        """The frames of all ranks, which `exchanged` gives for a capacity, with room for values of this length."""
        if not self.lock.acquire(blocking=False):
            self._refuse_a_second_thread(header)
        try:
            self.interrupt = None
            capacity = self.capacity_after.get(self.previous, 0)
            frames = exchanged(capacity)
            if capacity < length:
                frames = exchanged(length)
            self.capacity_after[self.previous] = max(capacity, length)
            self.previous = header
            return frames
        finally:
            self.lock.release()
            if self.interrupt is not None:
                raise self.interrupt

    def abort(self, header: FrameHeader) -> None:
        """Sends a frame without values, so that the exchange raises on the other ranks."""
        with self.lock:
            self.progress = Progress(self.progress.collectives + 1, stopped=True)
            self._send_nothing(header, self.capacity_after.get(self.previous, 0))

    def _refuse_a_second_thread(self, header: FrameHeader) -> NoReturn:
        """Raises ExchangeError on all ranks: another thread of this process is in an exchange of this group.

        The order in which two threads come is another on each rank; and two collectives of one group at the same time
        make gloo end the process.
        """
        with self.lock:
            self._send_nothing(header, self.capacity_after.get(self.previous, 0), TWO_THREADS)
        kinds = [TWO_THREADS if i == self.rank else "" for i in range(self.ranks)]
        raise ExchangeError(failed(kinds, header))

    def _all_gather(self, values: Array, header: FrameHeader, batches: int, capacity: int) -> Array:
        """One collective: every rank's frame of this capacity, which contains the values if they fit."""
        mine, frame = packed(header, len(values), batches), np.zeros(WORDS + capacity)
        frame[:WORDS] = mine.view(np.float64)
        if len(values) <= capacity:
            frame[WORDS : WORDS + len(values)] = values
        sent, received = self._buffers(frame)
        self._collect(received, sent, header)
        frames: Array = received.cpu().numpy().reshape(self.ranks, -1)
        headers = frames[:, :WORDS].view(np.int64)
        if not (headers == mine).all() and (sentence := disagreement(headers, header, self.rank)):
            raise ExchangeError(sentence)
        return frames

    def _all_gather_on_device(self, values: Tensor, header: FrameHeader, capacity: int) -> Tensor:
        """The same, of a tensor; headers are copied to the device once."""
        length = len(values)
        mine = self.headers.get((header, length, values.device))
        if mine is None:
            mine = torch.from_numpy(packed(header, length, -1)).to(values.device)
            self.headers[header, length, values.device] = mine
        fits = length <= capacity
        room = values.new_zeros(capacity - length if fits else capacity)
        sent = torch.cat(
            (mine.view(torch.float64), values, room) if fits else (mine.view(torch.float64), room)
        )
        received = values.new_zeros(self.ranks * len(sent))
        self._collect(received, sent, header)
        frames = received.view(self.ranks, -1)
        same = (frames.narrow(1, 0, WORDS).view(torch.int64) == mine).all()
        torch._assert_async(same, f"batch_norm: the ranks exchange different things where rank {self.rank} exchanges "
                                  f"{described(header)}.")  # fmt: skip
        return frames

    def _collect(self, received: Tensor, sent: Tensor, header: FrameHeader) -> None:
        """One collective. Raises ExchangeError where it fails."""
        self.progress = Progress(self.progress.collectives + 1)
        try:
            self._run(received, sent)
        except RuntimeError as error:
            raise self._failure(header, error) from error

    def _run(self, received: Tensor, sent: Tensor) -> None:
        """The collective, whatever a signal handler raises: the other ranks have the frames, and go on with them."""
        group = self._group()
        try:
            _all_gather(received, sent, group=group)
        except RuntimeError:
            raise
        except BaseException as error:  # it was raised before the collective began, or after its end
            self.interrupt = error
            if not received.any():
                _all_gather(received, sent, group=group)

    def _send_nothing(self, header: FrameHeader, capacity: int, kind: str = STOPPED) -> None:
        """A frame of this capacity that has no values. What the other ranks send is not read."""
        frame = np.zeros(WORDS + capacity)
        frame[:WORDS] = packed(header._replace(kind=kind), 0, -1).view(np.float64)
        sent, received = self._buffers(frame)
        try:
            work = _all_gather(received, sent, group=self._group(), async_op=True)
            while not work.is_completed():  # in small steps, so that a second KeyboardInterrupt ends it
                sleep(0.001)
        except RuntimeError as error:
            raise self._failure(header, error) from error

    def _buffers(self, frame: Array) -> tuple[Tensor, Tensor]:
        """The frame, and room for the frames of all ranks."""
        sent = torch.from_numpy(frame).to(self.device)
        return sent, sent.new_zeros(self.ranks * len(frame))

    def _failure(self, header: FrameHeader, error: RuntimeError) -> ExchangeError:
        return groups.failure(f"the exchange of {described(header)}", self.rank, self.ranks, error)

    def _group(self) -> Any:
        """The private group. Without it a collective would use the default group."""
        group = self.group()
        if group is None:
            raise ExchangeError("batch_norm: the layer's process group was destroyed. No state was changed.")
        return group
