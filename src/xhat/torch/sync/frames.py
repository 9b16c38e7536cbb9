"""The exchange between ranks: the values of each rank reach all ranks in one collective, which can't be misread.

A collective needs buffers of equal size on all ranks: with gloo, unequal ones hang, abort the process or mix up values.
But ranks may be about to send different things. So the size of a buffer, called a frame, never depends on what this
rank sends, only on what all ranks have agreed on before:

    frame      header (16 words of 8 bytes), then room for `capacity` values
    capacity   the most values that any exchange has sent which came after the same exchange as this one; 0 at first

If the values do not fit, the frame has its header alone, which contains their number, and a second frame of the right
size follows, on all ranks alike. From then on one frame is enough. The header also describes the values (layer, number
of channels, dtype, ...). If the headers of the ranks differ, all ranks raise an error and use none of the values.
No statistics are computed here.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from xhat.torch.errors import ExchangeError, first_line
from xhat.torch.internals import device_of, timeout_of, untransformed
from xhat.torch.sync.header import WORDS, Array, FrameHeader, described, disagreement, packed, unpacked

__all__ = [
    "Array",
    "FrameHeader",
    "announce_failure",
    "gather",
    "group_name",
    "group_of",
    "rank",
    "world_size",
]

# torch renames all_gather_into_tensor, and warns of the old name where there is the other.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))


# ------------------------------------------------------------------------------------------------- process groups

_groups: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()
_sessions: "weakref.WeakKeyDictionary[Any, Session]" = weakref.WeakKeyDictionary()


def group_name(group: Any) -> str:
    """The name of a process group, by which a layer's state and a graph refer to it: '' for the default group."""
    if group is None or group is dist.group.WORLD:
        return ""
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        return "another's"
    name = str(group.group_name)
    _groups[name] = group
    return name


def group_of(name: str) -> Any:
    """The process group of this name. Raises ExchangeError if this process is not in it."""
    group = dist.group.WORLD if name == "" else _groups.get(name)
    if group is None:
        raise ExchangeError(
            f"batch_norm: this process is not in the layer's process group{f' {name!r}' if name else ''}. "
            "Give each rank the group that it is in, made in this process."
        )
    return group


def world_size(group: str) -> int:
    """The number of ranks in the group of this name; 1 if torch.distributed is not initialized."""
    if group == "" and not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group_of(group))


def rank(group: str) -> int:
    """The rank of this process in the group of this name."""
    return dist.get_rank(group_of(group))


# ------------------------------------------------------------------------------------------------------- exchange


def gather(values: Array, header: FrameHeader, group: str) -> Array:
    """The values (k,) of every rank, as (ranks, k); float64. The result is the same on all ranks.

    Raises ExchangeError on every rank if their headers differ, and if the collective fails.
    """
    return _session(group).gather(values, header)


@contextmanager
def announce_failure(header: FrameHeader, group: str) -> Iterator[None]:
    """Surrounds what this rank computes before an exchange. If that raises, the other ranks get an error at once.

    Without it they would wait for this rank until the group's timeout.
    """
    try:
        yield
    except ExchangeError:  # all ranks have raised it already
        raise
    except Exception:
        with suppress(ExchangeError), untransformed():  # this rank raises its own error, which says more
            _session(group).abort(header)
        raise


@contextmanager
def _explained(what: str, rank: int, ranks: int) -> Iterator[None]:
    """Raises ExchangeError, with a sentence, where a collective raises RuntimeError."""
    try:
        yield
    except RuntimeError as error:
        raise ExchangeError(
            f"batch_norm: {what} failed on rank {rank} of {ranks}: a rank has ended or did not come in time. "
            f"No state was changed. ({first_line(error)})"
        ) from error


def _session(name: str) -> "Session":
    group = group_of(name)
    if group not in _sessions:
        _sessions[group] = Session(_private_copy(group) if name == "" else group)
    return _sessions[group]


def _private_copy(group: Any) -> Any:
    """Another group of the same processes, so that no other collective comes between the exchanges of two ranks.

    Others use the default group whenever their own work is ready. DistributedDataParallel, for one, sends a bucket of
    gradients when it is full, which is at another time on ranks that leave out other parameters.
    """
    with _explained(
        "the first exchange, which makes a process group,", dist.get_rank(), dist.get_world_size()
    ):
        return dist.new_group(timeout=timeout_of(group))


class Session:
    """The exchanges of one process group in their order, which is the same on all ranks."""

    def __init__(self, group: Any) -> None:
        self.group = weakref.ref(group)
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.device = device_of(group)
        self.previous: FrameHeader | None = None
        self.capacity_after: dict[
            FrameHeader | None, int
        ] = {}  # by the previous exchange: equal on all ranks

    def gather(self, values: Array, header: FrameHeader) -> Array:
        """See `gather`."""
        capacity, length = self.capacity_after.get(self.previous, 0), len(values)
        frames = self._all_gather(values, header, capacity)
        if capacity < length:
            frames = self._all_gather(values, header, length)
        self.capacity_after[self.previous] = max(capacity, length)
        self.previous = header
        return frames[:, WORDS : WORDS + length]

    def abort(self, header: FrameHeader) -> None:
        """Sends a frame without values, of kind "nothing", so that the exchange raises on the other ranks."""
        self._all_gather(
            np.zeros(0), header._replace(kind="nothing"), self.capacity_after.get(self.previous, 0)
        )

    def _all_gather(self, values: Array, header: FrameHeader, capacity: int) -> Array:
        """One collective: every rank's frame of this capacity, which contains the values if they fit."""
        mine, frame = packed(header, len(values)), np.zeros(WORDS + capacity)
        frame[:WORDS] = mine.view(np.float64)
        if len(values) <= capacity:
            frame[WORDS : WORDS + len(values)] = values
        sent = torch.from_numpy(frame).to(self.device)
        received = sent.new_empty(self.ranks * len(frame))
        with _explained(f"the exchange of {described(header)}", self.rank, self.ranks):
            _all_gather(received, sent, group=self.group())
        frames: Array = received.cpu().numpy().reshape(self.ranks, -1)
        headers = frames[:, :WORDS].view(np.int64)
        if not (headers == mine).all():
            raise ExchangeError(disagreement([unpacked(h) for h in headers], header, self.rank))
        return frames
