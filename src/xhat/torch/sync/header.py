"""The header of a frame: what its values are, as 64-bit words, and the sentence for ranks whose headers differ.

How frames are exchanged must never be decided here.
"""

import struct
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from xhat.plan import ACTIVATIONS

__all__ = ["WORDS", "Array", "FrameHeader", "described", "disagreement", "packed", "unpacked"]

Array = npt.NDArray[Any]

KINDS = ("nothing", "statistics", "gradient sums", "sums", "running statistics", "population moments")
DTYPES = (None, torch.float64, torch.float32, torch.float16, torch.bfloat16)
MAGIC = 0x7861_7421  # the first word of every header, to recognize buffers of other collectives
NAME_BYTES = 80  # for the layer's path; a longer path is cut at its beginning
# MAGIC, the number of values, then a FrameHeader: channels, five one-byte codes, 3 bytes of padding, eps, slope, layer.
LAYOUT = struct.Struct(f"=qqqbb?bb3xdd{NAME_BYTES}s")
WORDS = LAYOUT.size // 8


class FrameHeader(NamedTuple):
    """What the values of an exchange are. It must be equal on all ranks.

    kind: one of KINDS. differentiated: whether the layer's input needs a gradient, which takes an exchange in the
    backward pass. eps, correction, activation, slope: as in `Options`; ranks with different options would compute
    different functions.
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


@lru_cache(maxsize=4096)
def packed(header: FrameHeader, length: int) -> Array:
    """The header and the number of values as 64-bit words."""
    kind, layer, channels, dtype, differentiated, eps, correction, activation, slope = header
    codes = KINDS.index(kind), DTYPES.index(dtype), differentiated, ACTIVATIONS[activation], correction
    name = layer.encode()[-NAME_BYTES:]
    return np.frombuffer(LAYOUT.pack(MAGIC, length, channels, *codes, eps, slope, name), np.int64)


def unpacked(words: Array) -> FrameHeader | None:
    """The header in these words; None if they are those of another collective."""
    magic, _, channels, *codes, eps, slope, name = LAYOUT.unpack(words.tobytes())
    if magic != MAGIC:
        return None
    kind, dtype, differentiated, activation, correction = codes
    kind, layer = KINDS[kind], name.rstrip(b"\0").decode(errors="replace")
    dtype, activation = DTYPES[dtype], tuple(ACTIVATIONS)[activation]
    return FrameHeader(kind, layer, channels, dtype, differentiated, eps, correction, activation, slope)


_FIELDS = {
    "layer": "layer",
    "kind": "exchange",
    "channels": "number of channels",
    "dtype": "dtype",
    "differentiated": "need of a gradient for the input",
    "eps": "eps",
    "correction": "correction",
    "activation": "activation",
    "slope": "slope",
}


def disagreement(headers: list[FrameHeader | None], mine: FrameHeader, rank: int) -> str:
    """The sentence for ranks whose headers differ: the first field that differs, and its values."""
    foreign = [i for i, h in enumerate(headers) if h is None]
    if foreign:
        return (
            f"batch_norm: rank {rank} exchanges {described(mine)}, and another collective came between, on "
            f"{_listed(foreign)}. Give the layer a process group of its own."
        )
    known = [h for h in headers if h is not None]
    stopped = [i for i, h in enumerate(known) if h.kind == "nothing"]
    if stopped:
        return (
            f"batch_norm: {_listed(stopped)} stopped before the exchange of {described(mine)}, "
            "by an error of its own. No state was changed."
        )
    for field, words in _FIELDS.items():
        ranks_with: dict[Any, list[int]] = {}
        for i, h in enumerate(known):
            ranks_with.setdefault(getattr(h, field), []).append(i)
        if len(ranks_with) > 1:
            values = "; ".join(f"{value!r} on {_listed(ranks)}" for value, ranks in ranks_with.items())
            return (
                f"batch_norm: the ranks disagree on the {words} of {described(mine)}: {values}. "
                "No state was changed."
            )
    return (
        f"batch_norm: the ranks disagree on how many numbers {described(mine)} are. Do all run the same xhat?"
    )


def described(header: FrameHeader) -> str:
    """The kind of values and their layer, for a sentence."""
    return f"{header.kind} of layer {header.layer!r}" if header.layer else header.kind


def _listed(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
