"""Test batches on which different mistakes give different numbers.

No formula of batch normalization lives here. A probe has few elements per channel (N and N - 1 differ clearly), an
eps as large as the variance (its position matters), means away from 0, variances away from 1, gammas of both signs,
and axes of distinct lengths.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "LARGE",
    "LAYOUTS",
    "UNIT",
    "Array",
    "Layout",
    "Probe",
    "far_probe",
    "heavy_probe",
    "probes",
    "rounded",
    "unit_for",
]

Array = npt.NDArray[np.float64]

# A scale of x beside which an eps of at most 1e-2 vanishes.
LARGE = {"float64": 1e5, "float32": 1e3, "float16": 30.0, "bfloat16": 100.0}
# The unit roundoff of each supported dtype: half the distance from 1 to the next number.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


class Layout(NamedTuple):
    """The channel axis, the axis that is mistaken for it, and the shapes of the probes."""

    name: str
    axis: int
    mistaken: int
    shapes: tuple[tuple[int, ...], ...]


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("NC", 1, 0, ((4, 3), (7, 5))),
        Layout("NCHW", 1, 3, ((2, 3, 1, 4), (3, 5, 2, 4))),
        Layout("NHWC", 3, 1, ((2, 4, 1, 3), (3, 4, 2, 5))),
        Layout("NCL", 1, 2, ((2, 3, 4), (3, 5, 4))),
        Layout("NLC", 2, 1, ((2, 4, 3), (3, 4, 5))),
        Layout("NCDHW", 1, 4, ((2, 3, 1, 2, 4), (2, 5, 2, 1, 4))),
        Layout("NDHWC", 4, 1, ((2, 4, 1, 2, 3), (2, 4, 2, 1, 5))),
        Layout("CN", 0, 1, ((3, 4), (5, 7))),
        # Code that confuses the two axes may run on square batches only.
        Layout("NC, square", 1, 0, ((4, 4), (6, 6))),
    )
}


@cache
def _axes(dimensions: int, axis: int, mistaken: int, over: str) -> tuple[int, ...]:
    """The summed axes: all but the channel axis, the batch axis, or all but the axis mistaken for the channels.

    "everything": all axes; "instance", "layer": all but the batch axis, and the channel axis with "instance";
    "rows", "columns": all but the channel axis, and but the last of the others, or the one before it.
    """
    kept = {axis}
    batch = next(a for a in range(dimensions) if a != axis)
    if over in ("everything", "instance", "layer"):
        kept = {"everything": set(), "instance": kept | {batch}, "layer": {batch}}[over]
    if over in ("rows", "columns"):
        others = [a for a in range(dimensions) if a not in kept]
        kept = kept | {others[-1 if over == "rows" or len(others) < 3 else -2]}
    if over == "batch":
        return (next(a for a in range(dimensions) if a not in kept),)
    if over in ("mistaken", "crossed"):
        kept = {mistaken}
    return tuple(a for a in range(dimensions) if a not in kept)


@cache
def _count(shape: tuple[int, ...], axis: int, mistaken: int, over: str) -> int:
    """The number of elements of a sum over `_axes`, or without the last of the batch, or with it twice."""
    count: int = prod(shape[a] for a in _axes(len(shape), axis, mistaken, over))
    edge = {"all but the last": -1, "the last twice": 1}.get(over, 0)
    (batch,) = _axes(len(shape), axis, mistaken, "batch")
    return count + edge * (count // shape[batch])


@dataclass(frozen=True, eq=False)
class Probe:
    """One batch with every possible argument of a forward and a backward; parameters broadcast against x."""

    layout: Layout
    x: Array
    dy: Array
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array
    eps: float
    momentum: float = 0.3
    unit: float = 1.0  # the scale of x

    def axes(self, over: str) -> tuple[int, ...]:
        """The axes of a sum: see `_axes`."""
        return _axes(self.x.ndim, self.layout.axis, self.layout.mistaken, over)

    def total(self, over: str = "all") -> Callable[[Any], Any]:
        """The sum over these axes, with keepdims, so that it broadcasts against x."""
        axes, shape = self.axes(over), self.x.shape
        if over == "crossed":  # over the mistaken axes, then transposed to the channel axis
            mistaken = self.total("mistaken")
            return lambda v: np.swapaxes(mistaken(v), self.layout.axis, self.layout.mistaken)
        if over in ("all but the last", "the last twice"):
            last = (slice(None),) * self.axes("batch")[0] + (slice(-1, None),)
            sign = -1 if over == "all but the last" else 1
            every, rest = self.total(), tuple(axes)
            return lambda v: every(v) + sign * np.broadcast_to(v, shape)[last].sum(axis=rest, keepdims=True)
        return lambda v: (v if np.shape(v) == shape else np.broadcast_to(v, shape)).sum(
            axis=axes, keepdims=True
        )

    @property
    def traits(self) -> frozenset[str]:
        """Properties that some mistakes need (see `faults`): spatial axes, or equal lengths of two axes."""
        square = self.x.shape[self.layout.axis] == self.x.shape[self.layout.mistaken]
        return frozenset({"with positions"} if self.x.ndim > 2 else set()) | ({"square"} if square else set())

    def count(self, over: str = "all") -> int:
        """The number of elements of such a sum."""
        return _count(self.x.shape, self.layout.axis, self.layout.mistaken, over)

    def with_parameters(self, affine: bool | str) -> "Probe":
        """The batch with gamma 1 or beta 0 where the code has no such parameter: all (True), one's name, or none."""
        gamma = self.gamma if affine in (True, "gamma") else np.ones_like(self.gamma)
        return replace(
            self, gamma=gamma, beta=self.beta if affine in (True, "beta") else np.zeros_like(self.beta)
        )

    def reshaped(self) -> "Probe":
        """The batch as x.reshape(-1, C), without moving the channel axis to the end first."""
        c = self.channels
        names = ("x", "dy", "gamma", "beta", "running_mean", "running_var")
        return replace(
            self, layout=LAYOUTS["NC"], **{name: getattr(self, name).reshape(-1, c) for name in names}
        )

    @property
    def channels(self) -> int:
        return int(self.x.shape[self.layout.axis])


def rounded(values: Array, dtype: str) -> Array:
    """The values rounded to a dtype, as float64: exactly the input of the code under test."""
    if dtype == "float64":
        return values
    if dtype == "bfloat16":  # the upper half of a float32, rounded to even
        bits = values.astype(np.float32).view(np.uint32)
        bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    return values.astype(dtype).astype(np.float64)


def unit_for(eps: float) -> float:
    """The scale of x at which eps matters: 1 for an eps of about 0.4."""
    return float(np.sqrt(eps / 0.4)) if eps else 1.0


def _probe(layout: Layout, shape: tuple[int, ...], eps: float, seed: int, unit: float) -> Probe:
    """A batch of this scale."""
    rng = np.random.default_rng(seed)
    wide = [1] * len(shape)
    wide[layout.axis] = shape[layout.axis]

    def per_channel(low: float, high: float) -> Array:
        return rng.uniform(low, high, wide)

    centre = per_channel(0.7, 2.5) * rng.choice([-1.0, 1.0], wide)
    noise, spread = rng.standard_normal(shape), per_channel(0.6, 1.9)
    # a dy with a mean and with a part along x, so that no path is small beside another
    dy = rng.standard_normal(shape) + per_channel(0.5, 1.5) + per_channel(0.8, 1.6) * noise
    return Probe(
        layout=layout,
        x=unit * (centre + spread * noise),
        dy=dy,
        gamma=per_channel(0.6, 2.2) * rng.choice([-1.0, 1.0], wide),
        beta=per_channel(-2.0, 2.0),
        running_mean=unit * per_channel(-2.0, 2.0),
        running_var=unit**2 * per_channel(0.4, 2.5),
        eps=eps,
        unit=unit,
    )


def _in_dtype(probe: Probe, dtype: str) -> Probe:
    names = ("x", "dy", "gamma", "beta", "running_mean", "running_var")
    values: dict[str, Any] = {name: rounded(getattr(probe, name), dtype) for name in names}
    return replace(probe, **values)


@lru_cache(maxsize=256)
def probes(
    layout: str,
    dtype: str = "float64",
    eps: float = 0.4,
    affine: bool | str = True,
    unit: float | None = None,
) -> tuple[Probe, ...]:
    """The probes of one layout, all values representable in the dtype. Not affine: gamma is 1 and beta 0.

    affine: "gamma" or "beta" if the code has only one of them.

    unit: the scale of x; by default that at which eps matters. At `LARGE` no usual eps is visible.
    """
    found = []
    scale = unit_for(eps) if unit is None else unit
    for seed, shape in enumerate(LAYOUTS[layout].shapes):
        probe = _probe(LAYOUTS[layout], shape, eps, seed + 11, scale)
        probe = probe.with_parameters(affine)
        found.append(_in_dtype(probe, dtype))
    return tuple(found)


def _tall(probe: Probe, count: int) -> tuple[int, ...]:
    """The shape of a probe with a longer batch axis, for about `count` elements per channel."""
    shape = list(probe.x.shape)
    axis = probe.axes("batch")[0]
    shape[axis] = max(2, count * shape[axis] // probe.count())
    return tuple(shape)


def far_probe(probe: Probe, distance: float, dtype: str) -> Probe:
    """A batch whose mean is `distance` standard deviations from 0: a one-pass variance cancels here."""
    rng = np.random.default_rng(5)
    shape = _tall(probe, 48)
    x = probe.unit * (distance + rng.standard_normal(shape))
    return _in_dtype(replace(probe, x=x, dy=rng.standard_normal(shape)), dtype)


def heavy_probe(probe: Probe, dtype: str) -> Probe:
    """A batch of moderate values whose sums exceed 65504, the largest float16."""
    rng = np.random.default_rng(6)
    shape = _tall(probe, 1400)
    x, dy = (100.0 + 9.0 * rng.standard_normal(shape) for _ in range(2))
    return _in_dtype(replace(probe, x=x, dy=dy), dtype)
