"""An exchange between processes: every rank's numbers to every rank, in one collective that can't be misread.

Collectives whose ranks bring frames of different sizes hang, abort, or mix up numbers. So the size of a frame never
depends on what this rank wants to send, only on what all ranks have agreed on before: on the exchange that followed
the last one the time before. Numbers that do not fit go in a second frame, once all have read in the first one that
all need it; from then on there is one. A frame begins with what its numbers are (layer, channels, dtype, ...), and
nothing is believed unless that is the same on all ranks. No statistics are computed here.
"""

import struct
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from xhat.ops import ACTIVATIONS
from xhat.torch.errors import ExchangeError, first_line
from xhat.torch.internals import device_of, timeout_of, untransformed
from xhat.torch.sync.merge import Array

__all__ = [
    "KINDS",
    "FrameHeader",
    "announce_failure",
    "gather",
    "group_name",
    "group_of",
    "rank",
    "world_size",
]

KINDS = ("nothing", "statistics", "gradient sums", "sums", "running statistics", "population moments")
DTYPES = (None, torch.float64, torch.float32, torch.float16, torch.bfloat16)
MARK = 0x7861_7421  # no other collective's numbers begin like this
LETTERS = 80  # of the layer's name
HEADER = struct.Struct(f"=qqqbb?bb3xdd{LETTERS}s")  # the mark, the length, a subject; 3 bytes align it
WORDS = HEADER.size // 8

# The newer name; the older one warns where there is the newer.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))


class FrameHeader(NamedTuple):
    """What the numbers of an exchange are; all ranks must bring the same."""

    kind: str
    layer: str
    channels: int
    dtype: torch.dtype | None = None
    differentiated: bool = False  # whether the gradient will pass here: an exchange too, with everybody in it
    eps: float = 0.0  # from here on as in `Options`: ranks that differ would compute different functions
    correction: int = 0
    activation: str | None = None
    slope: float = 0.0


# ------------------------------------------------------------------------------------------------------- groups

_groups: "weakref.WeakValueDictionary[str, Any]" = weakref.WeakValueDictionary()
_sessions: "weakref.WeakKeyDictionary[Any, Session]" = weakref.WeakKeyDictionary()


def group_name(group: Any) -> str:
    """What stands for a process group in a layer's state and in a graph: the default group is ''."""
    if group is None or group is dist.group.WORLD:
        return ""
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        return "another's"
    name = str(group.group_name)
    _groups[name] = group
    return name


def group_of(name: str) -> Any:
    """The process group of this name. Raises ExchangeError where this process has none."""
    group = dist.group.WORLD if name == "" else _groups.get(name)
    if group is None:
        raise ExchangeError(
            f"batch_norm: this process is not in the layer's process group{f' {name!r}' if name else ''}. "
            "Give each rank the group that it is in, made in this process."
        )
    return group


def world_size(name: str) -> int:
    """The number of ranks: 1 where nothing is distributed."""
    if name == "" and not (dist.is_available() and dist.is_initialized()):
        return 1
    return dist.get_world_size(group_of(name))


def rank(name: str) -> int:
    """This process's place in the group."""
    return dist.get_rank(group_of(name))


# ------------------------------------------------------------------------------------------------------ exchange


def gather(numbers: Array, subject: FrameHeader, group: str) -> Array:
    """Every rank's numbers (k,), float64, as (ranks, k), the same on all ranks.

    Raises ExchangeError on every rank where they disagree about the subject, and where the collective fails.
    """
    return _session(group).gather(numbers, subject)


@contextmanager
def announce_failure(subject: FrameHeader, group: str) -> Iterator[None]:
    """Where this rank fails before its part of an exchange, the others are told, and do not wait for it."""
    try:
        yield
    except ExchangeError:  # an exchange failed, and so everybody knows
        raise
    except Exception:
        with suppress(ExchangeError), untransformed():  # what this rank raises itself says more
            _session(group).abort(subject)
        raise


@contextmanager
def _in_time(what: str, rank: int, ranks: int) -> Iterator[None]:
    """What all ranks do together: its failure on one of them, as a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ExchangeError(
            f"batch_norm: {what} failed on rank {rank} of {ranks}: a rank has ended or did not come in time. "
            f"No state was changed. ({first_line(error)})"
        ) from error


def _session(group: str) -> "Session":
    found = group_of(group)
    if found not in _sessions:
        _sessions[found] = Session(_twin(found) if group == "" else found)
    return _sessions[found]


def _twin(group: Any) -> Any:
    """The same processes in a group of our own, in which no other collective comes between two ranks' exchanges.

    Whoever else uses the default group does so when its own work is ready: DistributedDataParallel's buckets, where
    ranks leave out different parameters, are so at different times.
    """
    with _in_time("the first exchange, which makes a process group,", dist.get_rank(), dist.get_world_size()):
        return dist.new_group(timeout=timeout_of(group))


class Session:
    """The exchanges of one group: which came after which, as all its ranks have seen it."""

    def __init__(self, group: Any) -> None:
        self.group = weakref.ref(group)
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.device = device_of(group)
        self.last: FrameHeader | None = None
        self.room_after: dict[FrameHeader | None, int] = {}

    def gather(self, numbers: Array, subject: FrameHeader) -> Array:
        """See `gather`."""
        room, length = self.room_after.get(self.last, 0), len(numbers)
        frames = self._exchange(numbers, subject, room)
        if room < length:
            frames = self._exchange(numbers, subject, length)
        self.room_after[self.last] = max(room, length)
        self.last = subject
        return frames[:, WORDS : WORDS + length]

    def abort(self, subject: FrameHeader) -> None:
        """Takes part without numbers: everybody is refused them."""
        self._exchange(np.zeros(0), subject._replace(kind="nothing"), self.room_after.get(self.last, 0))

    def _exchange(self, numbers: Array, subject: FrameHeader, room: int) -> Array:
        """One collective, of frames with room for so many numbers; they are in it if they fit."""
        header, frame = _header(subject, len(numbers)), np.zeros(WORDS + room)
        frame[:WORDS] = header.view(np.float64)
        if len(numbers) <= room:
            frame[WORDS : WORDS + len(numbers)] = numbers
        mine = torch.from_numpy(frame).to(self.device)
        everybodys = mine.new_empty(self.ranks * len(frame))
        with _in_time(f"the exchange of {_called(subject)}", self.rank, self.ranks):
            _all_gather(everybodys, mine, group=self.group())
        frames: Array = everybodys.cpu().numpy().reshape(self.ranks, -1)
        headers = frames[:, :WORDS].view(np.int64)
        if not (headers == header).all():
            raise ExchangeError(_disagreement([_read(h) for h in headers], subject, self.rank))
        return frames


# ------------------------------------------------------------------------------------------------------- headers


@lru_cache(maxsize=4096)
def _header(subject: FrameHeader, length: int) -> Array:
    """The subject as 64-bit words."""
    kind, layer, channels, dtype, differentiated, eps, correction, activation, slope = subject
    codes = KINDS.index(kind), DTYPES.index(dtype), differentiated, ACTIVATIONS[activation], correction
    packed = HEADER.pack(MARK, length, channels, *codes, eps, slope, layer.encode()[-LETTERS:])
    return np.frombuffer(packed, np.int64)


def _read(header: Array) -> FrameHeader | None:
    """The subject of a header; None where it is none."""
    mark, _, channels, *codes, eps, slope, name = HEADER.unpack(header.tobytes())
    if mark != MARK:
        return None
    kind, dtype, differentiated, activation, correction = codes
    layer = name.rstrip(b"\0").decode(errors="replace")
    return FrameHeader(KINDS[kind], layer, channels, DTYPES[dtype], differentiated, eps, correction,
                   tuple(ACTIVATIONS)[activation], slope)  # fmt: skip


def _disagreement(subjects: list[FrameHeader | None], mine: FrameHeader, rank: int) -> str:
    """The sentence for ranks that bring different things: the layer, and the values."""
    if any(s is None for s in subjects):
        return (
            f"batch_norm: rank {rank} exchanges {_called(mine)}, and another collective came between, on "
            f"{_ranks([i for i, s in enumerate(subjects) if s is None])}. Give the layer a process group of its own."
        )
    known = [s for s in subjects if s is not None]
    stopped = [i for i, s in enumerate(known) if s.kind == "nothing"]
    if stopped:
        return (
            f"batch_norm: {_ranks(stopped)} stopped before the exchange of {_called(mine)}, by an error of its own. "
            "No state was changed."
        )
    fields = (("layer", "layer"), ("kind", "exchange"), ("channels", "number of channels"), ("dtype", "dtype"),
              ("differentiated", "need of a gradient for the input"), ("eps", "eps"), ("correction", "correction"),
              ("activation", "activation"), ("slope", "slope"))  # fmt: skip
    for field, words in fields:
        values: dict[Any, list[int]] = {}
        for i, s in enumerate(known):
            values.setdefault(getattr(s, field), []).append(i)
        if len(values) > 1:
            listed = "; ".join(f"{v!r} on {_ranks(ranks)}" for v, ranks in values.items())
            return f"batch_norm: the ranks disagree on the {words} of {_called(mine)}: {listed}. No state was changed."
    return (
        f"batch_norm: the ranks disagree on how many numbers {_called(mine)} are. Do all run the same xhat?"
    )


def _called(subject: FrameHeader) -> str:
    return f"{subject.kind} of layer {subject.layer!r}" if subject.layer else subject.kind


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
