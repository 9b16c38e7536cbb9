"""How tensors are divided among programs, without Triton."""

import itertools

import pytest

from xhat.torch.gpu.tiles import PROGRAMS, WHOLE, tiles_of, walked

SHAPES = [
    (64, 64, 3136),
    (64, 512, 49),
    (1, 3, 7),
    (200704, 64, 1),
    (17, 1000, 1),
    (3, 5, 1),
    (2, 1, 1),
    (64, 2048, 49),
]


def strides_of(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Of a dense array that the view walks."""
    _, channels, inner = shape
    return channels * inner, inner, 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_splits_cover_every_element_once(shape: tuple[int, int, int], itemsize: int) -> None:
    t = tiles_of(shape, itemsize, (strides_of(shape),), 1)
    ends = [min(t.elements, (s + 1) * t.per) for s in range(t.splits)]
    starts = [s * t.per for s in range(t.splits)]
    assert starts == [0, *ends[:-1]] and ends[-1] == t.elements == shape[0] * shape[2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_a_vector_divides_what_is_contiguous_and_every_stride(
    shape: tuple[int, int, int], itemsize: int
) -> None:
    strides = strides_of(shape)
    t = tiles_of(shape, itemsize, (strides,), 1)
    assert t.vec * itemsize <= 16 and t.rows & (t.rows - 1) == 0
    assert (shape[2] if t.lanes else shape[1]) % t.vec == 0
    assert not t.lanes or t.per % t.vec == 0


def test_a_second_tensor_with_odd_strides_narrows_the_vector() -> None:
    shape = (8, 16, 64)
    assert tiles_of(shape, 4, (strides_of(shape),), 1).vec == 4
    assert tiles_of(shape, 4, (strides_of(shape), (16 * 66, 66, 1)), 1).vec == 2


def test_programs_are_bounded_and_a_small_channel_is_one_program() -> None:
    for shape, itemsize in itertools.product(SHAPES, (2, 4)):
        t = tiles_of(shape, itemsize, (strides_of(shape),), 1)
        blocks = -(-shape[1] // t.columns)
        assert t.splits * blocks <= max(PROGRAMS, blocks)
        assert t.whole == (t.elements * t.columns <= WHOLE)
        assert not t.whole or t.rows >= t.elements


@pytest.mark.parametrize(
    ("shape", "strides", "lanes"),
    [
        ((4, 8, 24), (192, 24, 1), True),
        ((96, 8, 1), (8, 1, 1), False),
        ((4, 8, 24), (384, 48, 2), None),  # every other element
        ((96, 8, 1), (16, 2, 1), None),
        ((2**16, 4, 2**16), (2**18, 2**16, 1), None),  # an index needs more than 32 bits
    ],
)
def test_a_walk_needs_neighbours_that_lie_together(
    shape: tuple[int, int, int], strides: tuple[int, int, int], lanes: bool | None
) -> None:
    assert walked(shape, strides) is lanes
