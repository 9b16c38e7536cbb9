"""How a tensor is divided among programs: walk, vector width, tile and splits, from its shape and strides alone.

Nothing depends on the card, so neither do the order of sums and the bits of the results. No Triton is needed here.

Walks over a view (outer, channel, inner):

    columns   the channel stride is 1 and inner is 1 (NHWC, (N, C)): a tile is elements x channels
    lanes     the inner stride is 1 (NCHW): a program has one channel, and its elements k = n inner + i as one index
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from xhat.layout import Strides

__all__ = ["Tiles", "power_of_two", "tiles_of", "walked"]

PROGRAMS = 264  # of the sums: two for each of 132 multiprocessors
LARGEST = 2**31 - 1  # of an index within a channel, and of a stride
WHOLE = 4096  # elements that a program holds in registers
VECTORS = 128  # of 16 bytes in a tile: one for each of 4 warps' threads


class Tiles(NamedTuple):
    """lanes: the walk. vec: elements that are loaded at once; rows, columns: of a tile of a sum; map_rows: of a map.

    elements: of a channel. splits: parts of them, of `per` elements each. whole: whether a channel's elements fit
    into the registers of one program; rows is then at least elements.
    """

    lanes: bool
    vec: int
    elements: int
    rows: int
    map_rows: int
    columns: int
    splits: int
    per: int
    whole: bool


def power_of_two(n: int) -> int:
    """The smallest one that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def walked(shape: tuple[int, int, int], strides: Strides) -> bool | None:
    """Whether lanes walk an array of these strides on its view; None where neither walk does: it needs a copy."""
    outer, channels, inner = shape
    if max(outer * inner, *map(abs, strides)) > LARGEST or min(strides) < 0:
        return None
    if inner == 1:
        return False if strides[1] == 1 or channels == 1 else None
    return True if strides[2] == 1 else None


def _vector(lanes: bool, itemsize: int, sizes: Sequence[int]) -> int:
    """The elements of 16 bytes, or of fewer where sizes or strides are no multiple of them."""
    vec = 16 // itemsize
    while any(size % vec for size in sizes):
        vec //= 2
    return vec


@lru_cache(maxsize=4096)
def tiles_of(shape: tuple[int, int, int], itemsize: int, strides: tuple[Strides, ...], terms: int) -> Tiles:
    """The tiles of arrays with these strides on a view of this shape; terms: that a sum adds before it widens."""
    outer, channels, inner = shape
    lanes = walked(shape, strides[0])
    assert lanes is not None
    count = outer * inner
    sizes = [inner if lanes else channels, *(s[0] for s in strides if outer > 1)]
    vec = _vector(lanes, itemsize, sizes + [s[1] for s in strides if lanes and channels > 1])
    columns = 1 if lanes else min(64, power_of_two(channels))
    whole = count * columns <= WHOLE
    rows = power_of_two(count) if whole else max(1, VECTORS * vec // columns)
    blocks = -(-channels // columns)
    splits = 1 if whole else max(1, min(PROGRAMS // blocks, -(-count // (8 * terms * rows))))
    per = max(
        1, -(-count // (splits * vec)) * vec if lanes else -(-count // splits)
    )  # of nothing: one empty split
    return Tiles(
        lanes,
        vec,
        count,
        rows,
        4 * rows if columns > 1 else rows,
        columns,
        max(1, -(-count // per)),
        per,
        whole,
    )
