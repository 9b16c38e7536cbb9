"""The header of a frame: what its values are, as 64-bit words, and the sentence for ranks whose headers differ.

How frames are exchanged must never be decided here.
"""

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from xhat.plan import ACTIVATIONS
from xhat.torch.inputs import NONFINITE

__all__ = [
    "AFFINE",
    "KINDS",
    "WORDS",
    "Array",
    "FrameHeader",
    "described",
    "disagreement",
    "failed",
    "packed",
]

Array = npt.NDArray[Any]

# Sent in place of values: by a rank that has raised, and by a thread that found another one in an exchange.
STOPPED, TWO_THREADS = "nothing", "nothing, from a second thread"
KINDS = (
    STOPPED,
    TWO_THREADS,
    "statistics",
    "gradient sums",
    "sums",
    "running statistics",
    "population moments",
)
_OF_A_MODEL = KINDS[-2:]  # `layer` then describes the layers of the model
DTYPES = (None, torch.float64, torch.float32, torch.float16, torch.bfloat16)
AFFINE = ("none", "weight", "bias", "weight and bias")
MAGIC = 0x7861_7422  # the first word of every header, to recognize buffers of other collectives
NAME_BYTES = 64  # for the layer's path; a longer path is cut at its beginning
# MAGIC, the number of values, a FrameHeader, and num_batches_tracked: 128 bytes, two cache lines.
LAYOUT = struct.Struct(f"=q ii bb?bb?H dd d b?bb I q {NAME_BYTES}s")
WORDS = LAYOUT.size // 8
BATCHES = LAYOUT.size // 8 - NAME_BYTES // 8 - 1  # the word of num_batches_tracked


class FrameHeader(NamedTuple):
    """What the values of an exchange are. It must be equal on all ranks.

    kind            one of KINDS
    layer           the layer's path
    channels        how many
    dtype           of the layer's input
    differentiated  whether the layer's input needs a gradient, which takes an exchange in the backward pass
    eps, ... slope  as in `Options`: ranks with different options would compute different functions
    recomputed      whether this forward pass repeats one within a backward pass (activation checkpointing)
    number          which of the layers with this path it is, in the order of their first exchanges
    momentum, running_correction, nonfinite, statistics
                    how running statistics move, and their dtype; statistics is None if they do not move
    affine          which parameters the layer has, one of AFFINE
    frozen_affine   whether they are frozen
    forward         checksum of the statistics of the forward pass that a gradient sum belongs to; 0 in a forward pass
    """

    kind: str
    layer: str
    channels: int
    dtype: torch.dtype | None = None
    differentiated: bool = False
    eps: float = 0.0
    correction: int = 0
    activation: str | None = None
    slope: float = 0.0
    recomputed: bool = False
    number: int = 0
    momentum: float | None = None
    running_correction: int = 0
    nonfinite: str = "propagate"
    statistics: torch.dtype | None = None
    affine: str = "none"
    frozen_affine: bool = False
    forward: int = 0


def packed(header: FrameHeader, length: int, batches: int) -> Array:
    """The header, the number of values, and num_batches_tracked (-1 if it is unknown) as 64-bit words."""
    words = _packed(header, length).copy()
    words[BATCHES] = batches
    return words


@lru_cache(maxsize=4096)
def _packed(h: FrameHeader, length: int) -> Array:
    kinds = KINDS.index(h.kind), DTYPES.index(h.dtype), h.differentiated, ACTIVATIONS[h.activation]
    follows = h.running_correction, h.frozen_affine, NONFINITE.index(h.nonfinite)
    fields = (
        *(MAGIC, length, h.channels, *kinds, h.correction, h.recomputed, h.number % 2**16, h.eps, h.slope),
        *(np.nan if h.momentum is None else h.momentum, *follows),
        *(DTYPES.index(h.statistics) + len(DTYPES) * AFFINE.index(h.affine), h.forward, -1),
        h.layer.encode()[-NAME_BYTES:],
    )
    return np.frombuffer(LAYOUT.pack(*fields), np.int64)


class Received(NamedTuple):
    """What the words of one rank say."""

    header: FrameHeader
    length: int
    batches: int


def _unpacked(words: Array) -> Received | None:
    """The contents of these words; None if they are those of another collective."""
    magic, length, channels, *codes, forward, batches, name = LAYOUT.unpack(words.tobytes())
    if magic != MAGIC:
        return None
    kind, dtype, differentiated, activation, correction, recomputed, number, *codes = codes
    eps, slope, momentum, running_correction, frozen, nonfinite, both = codes
    affine, statistics = divmod(both, len(DTYPES))
    header = FrameHeader(
        KINDS[kind], name.rstrip(b"\0").decode(errors="replace"), channels, DTYPES[dtype], differentiated,
        eps, correction, tuple(ACTIVATIONS)[activation], slope, recomputed, number,
        None if np.isnan(momentum) else momentum, running_correction, NONFINITE[nonfinite], DTYPES[statistics],
        AFFINE[affine], frozen, forward,
    )  # fmt: skip
    return Received(header, length, batches)


# The fields in the order in which a difference is reported, and their names in the sentence.
_FIELDS = {
    "layer": "layer",
    "kind": "exchange",
    "number": "number (among the layers with this path, by first use)",
    "recomputed": "recomputation (activation checkpointing)",
    "channels": "number of channels",
    "dtype": "dtype",
    "differentiated": "need of a gradient for the input",
    "eps": "eps",
    "correction": "correction",
    "activation": "activation",
    "slope": "slope",
    "statistics": "running statistics",
    "momentum": "momentum",
    "running_correction": "running_correction",
    "nonfinite": "nonfinite",
    "affine": "parameters",
    "frozen_affine": "frozen_affine",
    "forward": "forward pass",
}


def disagreement(words: Iterable[Array], mine: FrameHeader, rank: int) -> str | None:
    """The sentence for ranks whose headers differ: the first field that differs, and its values.

    None if only num_batches_tracked differs, and where it is known (-1: unknown) it is the same.
    """
    received = [_unpacked(w) for w in words]
    foreign = [i for i, r in enumerate(received) if r is None]
    if foreign:
        return (
            f"batch_norm: rank {rank} exchanges {described(mine)}, and another collective came between, on "
            f"{_listed(foreign)}. Give the layer a process group of its own."
        )
    known = [r for r in received if r is not None]
    return failed([r.header.kind for r in known], mine) or _difference(known, mine)


def failed(kinds: list[str], mine: FrameHeader) -> str | None:
    """The sentence for ranks that can't take part in this exchange."""
    threads = [i for i, kind in enumerate(kinds) if kind == TWO_THREADS]
    if threads:
        return (
            f"batch_norm: {_listed(threads)} made an exchange while another thread of that process made one, beside "
            f"{described(mine)}. No state was changed. Exchanges need the same order on all ranks: use the layers of a "
            "process group from one thread at a time, or give each thread a group of its own."
        )
    stopped = [i for i, kind in enumerate(kinds) if kind == STOPPED]
    if stopped:
        return (
            f"batch_norm: {_listed(stopped)} stopped before the exchange of {described(mine)}, "
            "by an error of its own. No state was changed."
        )
    return None


def _difference(received: list[Received], mine: FrameHeader) -> str | None:
    what = described(mine)
    exchanges = _ranks_with(described(r.header) for r in received)
    kinds = {r.header.kind for r in received}
    if len(kinds) > 1 and kinds & set(_OF_A_MODEL):
        return (
            f"batch_norm: the ranks make different exchanges: {_values(exchanges)}. No state was changed. Ranks that "
            "train on different numbers of batches are out of step."
        )
    for field, words in _FIELDS.items():
        found = _ranks_with(_shown(field, getattr(r.header, field)) for r in received)
        if len(found) > 1:
            return (
                f"batch_norm: the ranks disagree on the {words} of {what}: {_values(found)}. "
                f"No state was changed.{_REMEDIES.get(field, '')}"
            )
    if len({r.length for r in received}) > 1:
        return (
            f"batch_norm: the ranks disagree on how many numbers {what} are. Do all run the same xhat, on devices of "
            "one kind?"
        )
    batches = _ranks_with(r.batches for r in received)
    batches.pop(-1, None)
    if len(batches) > 1:
        return (
            f"batch_norm: the ranks disagree on the num_batches_tracked of {what}: {_values(batches)}. No state was "
            "changed. Load the same checkpoint on all ranks, or call xhat.torch.merge_running_statistics."
        )
    return None


_REMEDIES = {
    "number": " Use the layers in the same order on all ranks.",
    "forward": " Run the backward passes of several forward passes in the same order on all ranks.",
}


def _shown(field: str, value: Any) -> Any:
    if field == "forward":
        return f"checksum {value:08x}"
    return value + 1 if field == "number" else repr(value)


def _ranks_with(values: Iterable[Any]) -> dict[Any, list[int]]:
    """value -> the ranks that have it."""
    found: dict[Any, list[int]] = {}
    for i, value in enumerate(values):
        found.setdefault(value, []).append(i)
    return found


def _values(found: dict[Any, list[int]]) -> str:
    return "; ".join(f"{value} on {_listed(ranks)}" for value, ranks in found.items())


def described(header: FrameHeader) -> str:
    """The kind of values and their layer, for a sentence."""
    if header.kind in _OF_A_MODEL:
        return f"{header.kind} of {header.layer}"
    return f"{header.kind} of layer {header.layer!r}" if header.layer else header.kind


def _listed(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
