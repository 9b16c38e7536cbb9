"""The tensors of a pass as the kernels take them: addresses, strides in vectors, and the tiles that they share."""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from xhat.layout import Strides, strides_on
from xhat.plan import Plan
from xhat.torch.gpu.formulas import BY_MOMENTUM, CUMULATIVE, NOT_MOVED
from xhat.torch.gpu.tiles import Tiles, tiles_of, walked
from xhat.torch.inputs import Moving

__all__ = ["Moved", "Operands", "vector", "wide"]

Maybe = Tensor | None


class Walk(NamedTuple):
    """What follows from the shapes, strides and dtype of a pass alone, as kernels take it."""

    tiles: Tiles
    channels: int
    blocks: int  # of channels
    sizes: tuple[int, int]  # elements of a channel, and channels; in vectors the one that is contiguous
    per: int  # elements of a split, in vectors where they are contiguous
    inner: int  # contiguous elements of a channel, in vectors


@lru_cache(maxsize=4096)
def walk_of(shape: tuple[int, int, int], itemsize: int, strides: tuple[Strides, ...], terms: int) -> Walk:
    """The walk over arrays with these strides on a view of this shape."""
    t = tiles_of(shape, itemsize, strides, terms)
    channels = shape[1]
    sizes = (t.elements // t.vec, channels) if t.lanes else (t.elements, channels // t.vec)
    per, inner = (t.per // t.vec, shape[2] // t.vec) if t.lanes else (t.per, 1)
    return Walk(t, channels, -(-channels // t.columns), sizes, per, inner)


@lru_cache(maxsize=4096)
def _strides(
    plan: Plan, shape: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[Strides | None, bool | None]:
    """The strides on the view, and the way to walk them; None where there is none."""
    strides = strides_on(plan.view, shape, stride)
    return strides, None if strides is None else walked(plan.view.shape, strides)


class Operands:
    """The tensors of a pass, each as it is or as a copy that the walk can follow, and the tiles that they share."""

    def __init__(self, plan: Plan, **tensors: Maybe) -> None:
        self.plan = plan
        self.tensors: dict[str, Tensor] = {}
        self.strides: dict[str, Strides] = {}
        lanes = None
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            strides, way = _strides(plan, tensor.shape, tensor.stride())
            if way is None or (lanes is not None and way != lanes):
                tensor, strides = _copied(tensor, plan)
                way = walked(plan.view.shape, strides)
            assert strides is not None
            lanes = way
            self.tensors[name], self.strides[name] = tensor, strides
        first: Tensor = next(iter(self.tensors.values()))
        self.first = first
        self.wide: Any = tl.float64 if first.dtype is torch.float64 else tl.float32
        self.terms = 8 if first.element_size() == 2 else 1
        strides_of_all = (*self.strides.values(),)
        self.tiles, self.channels, self.blocks, self.sizes, self.per, self.inner = walk_of(
            plan.view.shape, first.element_size(), strides_of_all, self.terms
        )

    def result(self) -> Tensor:
        """A tensor like the first one, that the walk follows."""
        new = torch.empty_like(self.first)
        return new if new.stride() == self.first.stride() else _dense(self.first, self.plan)

    def written(self, name: str, result: Tensor) -> Tensor:
        """Registers a result, so that `at` knows its strides."""
        strides, _ = _strides(self.plan, result.shape, result.stride())
        assert strides is not None
        self.tensors[name], self.strides[name] = result, strides
        return result

    def __getitem__(self, name: str) -> Tensor:
        """A tensor; the first one where there is none of this name, since a kernel takes an address."""
        return self.tensors.get(name, self.first)

    def at(self, *names: str) -> tuple[int, ...]:
        """The outer and channel strides of these tensors, in vectors."""
        found = [self.strides.get(name, (0, 0, 0)) for name in names]
        return tuple(stride // self.tiles.vec for outer, channel, _ in found for stride in (outer, channel))

    def constants(self, rows: int, **others: Any) -> dict[str, Any]:
        """The constants of a kernel over tiles of so many rows, in the order in which kernels name them."""
        t = self.tiles
        return dict(VEC=t.vec, ROWS=rows, COLUMNS=t.columns, **others, WIDE=self.wide, LANES=t.lanes)


class Moved:
    """Running statistics as a kernel takes them; none: the addresses of some other tensor, which it leaves alone."""

    def __init__(self, moving: Moving | None, other: Tensor) -> None:
        self.moving = moving
        if moving is None:
            self.tensors, self.numbers, self.how = (other, other, other), (0.0, 0.0), NOT_MOVED.value
            return
        mean, var, batches, weight, m, correction, running_correction = moving
        self.tensors = mean, var, other if batches is None else batches
        factor = 1.0 if isinstance(m, Tensor) else (m - correction) / (m - running_correction)
        self.numbers = 0.0 if weight is None else weight, factor
        self.how = CUMULATIVE.value if weight is None else BY_MOMENTUM.value

    def count(self) -> None:
        """After the launch: one batch more, unless it is empty."""
        if self.moving is None:
            return
        mean, var, batches, _, m, *_ = self.moving
        if batches is not None:
            batches += (m > 0) if isinstance(m, Tensor) else 1
        torch.autograd.graph.increment_version((mean, var))


def _dense(t: Tensor, plan: Plan) -> Tensor:
    """An empty tensor whose axes lie in the order of the view."""
    view = plan.view
    walk = view.outer + view.channel + view.inner
    order = tuple(a for a in range(t.dim()) if a not in walk) + walk
    return torch.empty_permuted(t.shape, order, dtype=t.dtype, device=t.device)


def _copied(t: Tensor, plan: Plan) -> tuple[Tensor, Strides]:
    copy = _dense(t, plan).copy_(t)
    strides = strides_on(plan.view, copy.shape, copy.stride())
    assert strides is not None
    return copy, strides


def wide(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic on elements."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def vector(parameter: Maybe) -> Maybe:
    """An element per channel, without gaps."""
    return parameter if parameter is None else parameter.contiguous()
