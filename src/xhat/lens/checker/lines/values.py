"""The watched values of several batches, side by side: which exact step each is, or a multiple of which.

The values of a loop over channels or elements are stacked, so that they are recognized as one array.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from xhat.lens.checker.expected.exact import Arranged, Steps, arrangements
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.formulas.powers import ONE, Factor, Scales, fit
from xhat.lens.checker.lines.rewrite import Site
from xhat.lens.checker.lines.watch import Moment

__all__ = ["Value", "by_channel", "multiple_of", "values_of"]

_SEVERAL = 8  # calls of one function, at most; more evaluations of a site are a loop


@dataclass(eq=False)
class Value:
    """What one place computed on every batch, and which steps it equals on all of them."""

    site: Site
    moments: list[list[Moment]]
    arranged: list[list[Arranged]]
    raw: list[Array]
    filled: bool = False  # an array that a loop fills: every evaluation is the same array
    names: list[str] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """Whole, by channel, a count, or other: an array of another shape, or a number that is no count."""
        kind = self.arranged[0][0].kind if all(self.arranged) else "other"
        is_count = kind == "number" and all(
            (v == v.ravel()[0]).all() and v.ravel()[0] % 1 == 0 for v in self.raw
        )
        return "other" if kind == "number" and not is_count and not self.names else kind

    @property
    def constant(self) -> bool:
        """Whether it is a number that is the same on every batch."""
        return len({float(v.ravel()[0]) for v in self.raw}) == 1 and all(v.size == 1 for v in self.raw)

    @property
    def is_array(self) -> bool:
        """Whether it has the shape of x or of the channels."""
        return self.kind in ("whole", "by channel")

    @property
    def numbers(self) -> list[Array]:
        """The values on every batch in the axes of x, or by channel."""
        return [ways[0].value for ways in self.arranged]

    def moments_with_values(self, batch: int) -> list[tuple[Moment, Array]]:
        """Each evaluation with its value; of an array that a loop fills, the last one."""
        moments, raw = self.moments[batch], self.raw[batch]
        if self.filled or len(moments) == 1:
            return [(moments[-1], raw)]
        return list(zip(moments, raw, strict=True))

    def plan(self, batch: int, numbers: Array, way: int = 0) -> dict[Moment, Array]:
        """The replacement of this value by another one in the axes of x (or by one of the channels, or a number)."""
        arranged, moments = self.arranged[batch], self.moments[batch]
        if numbers.ndim == 0:
            return dict.fromkeys(moments, numbers)
        made = arranged[way].arrange(numbers) if arranged and self.kind != "other" else numbers
        return self.plan_of(batch, made)

    def plan_of(self, batch: int, raw: Array) -> dict[Moment, Array]:
        """The replacement by an array that is arranged as this value is; of a loop, one row for each evaluation."""
        moments = self.moments[batch]
        if len(moments) == 1 or self.filled:
            return dict.fromkeys(moments, raw)
        return dict(zip(moments, raw, strict=True))


def values_of(
    seen: list[dict[Moment, Array]], sites: list[Site], steps: list[Steps], tolerance: float
) -> list[Value]:
    """All values that were computed on every batch, in the order of their first evaluation."""
    grouped = [dict(_groups(record, s.probe)) for record, s in zip(seen, steps, strict=True)]
    found = []
    for key in grouped[0]:
        if all(key in g for g in grouped):
            moments, raw = [g[key][0] for g in grouped], [g[key][1] for g in grouped]
            arranged = [list(arrangements(v, s.probe)) for v, s in zip(raw, steps, strict=True)]
            value = Value(sites[key[0]], moments, arranged, raw, key[1] == -2)
            value.names = _names(value, steps, tolerance)
            found.append(value)
    _order_ways(found, steps, tolerance)
    return found


def _order_ways(values: list[Value], steps: list[Steps], tolerance: float) -> None:
    """Put first the way in which the values of a loop were read: by rows or by channels, as others of it were."""
    ways: dict[tuple[str, int], int] = {}
    for value in values:
        ambiguous = len(value.arranged[0]) > 1 and value.names
        key = (value.site.function, len(value.moments[0]))
        if ambiguous and key not in ways:
            fitting = [
                k
                for k, way in enumerate(value.arranged[0])
                if value.names[0] in steps[0].named(way.kind, way.value, tolerance)
            ]
            ways |= {key: fitting[0]} if len(fitting) == 1 else {}
    for value in values:
        first = ways.get((value.site.function, len(value.moments[0])), 0)
        if first and len(value.moments[0]) > 1:
            value.arranged = [
                [a[first], *a[:first], *a[first + 1 :]] if len(a) > first else a for a in value.arranged
            ]


def _groups(
    record: dict[Moment, Array], p: Probe
) -> Iterator[tuple[tuple[int, int], tuple[list[Moment], Array]]]:
    """(site, occurrence) -> moments and value; the occurrences of a loop are one group, with occurrence -1."""
    by_site: dict[int, list[Moment]] = {}
    for moment in record:
        by_site.setdefault(moment.site, []).append(moment)
    for site, moments in by_site.items():
        arrays = [record[m] for m in moments]
        alike = len({a.shape for a in arrays}) == 1
        total = sum(a.size for a in arrays)
        if len(moments) > 1 and alike and total in (p.channels, p.x.size):
            yield (site, -1), (moments, np.stack(arrays))
        elif alike and arrays[0].size == 1 and len({float(a.ravel()[0]) for a in arrays}) == 1:
            yield (site, -1), (moments, np.stack([a.reshape(()) for a in arrays]))
        elif len(moments) <= _SEVERAL:
            for moment, array in zip(moments, arrays, strict=True):
                yield (site, moment.occurrence), ([moment], array)
        else:  # an array that a loop fills: what it is in the end
            yield (site, -2), (moments, arrays[-1])


def _names(value: Value, steps: list[Steps], tolerance: float) -> list[str]:
    common: dict[str, None] | None = None
    for ways, of in zip(value.arranged, steps, strict=True):
        names: dict[str, None] = {}
        for way in ways:
            if way.kind == "number":
                number = float(way.value)
                names |= {n: None for n, e in of.numbers.items() if abs(e - number) <= tolerance * abs(e)}
            else:
                names |= dict.fromkeys(of.named(way.kind, way.value, tolerance))
        common = names if common is None else {n: None for n in common if n in names}
    return list(common or ())


def _equal(value: Array, exact: Array, tolerance: float) -> bool:
    size = float(np.abs(exact).max())
    return bool(np.abs(value - exact).max() <= tolerance * size) if size else False


# --------------------------------------------------------------------------------------------- multiples


def by_channel(value: Array, p: Probe) -> Array:
    """A value of the shape of x, or of the channels, as one row for each channel."""
    if value.shape != p.x.shape:
        return value.reshape(p.channels, 1)
    return np.moveaxis(value, p.layout.axis, 0).reshape(p.channels, -1)


def multiple_of(
    numbers: list[Array], steps: list[Steps], scales: Scales, near: float
) -> tuple[Factor, str] | None:
    """The simplest factor and step whose product are these values, one array for each batch."""
    whole = [n.shape == s.probe.x.shape for n, s in zip(numbers, steps, strict=True)]
    kind = "whole" if all(whole) else "by channel"
    best: tuple[tuple[float, int], Factor, str] | None = None
    names = steps[0].of_kind(kind)
    for k, name in enumerate(names):
        ratios = [
            _ratio(n, s.of_kind(kind)[name], s.probe, near) for n, s in zip(numbers, steps, strict=True)
        ]
        if any(r is None for r in ratios):
            continue
        factor = fit(np.concatenate(ratios), scales, max(near, 1e-7))  # type: ignore[arg-type]
        if factor is not None and (best is None or (cost(factor), k) < best[0]):
            best = ((cost(factor), k), factor, name)
    return best[1:] if best else None


def cost(factor: Factor) -> float:
    """How far a factor is from 1."""
    number = abs(factor.number)
    plain = min(abs(number - k) for k in (1.0, 2.0, 0.5)) < 1e-6
    unusual = 0.0 if factor == ONE else 0.5 if number == 1 else 1.0 if plain else 1.5
    return unusual + sum(abs(power) for _, power in factor.powers)


def _ratio(value: Array, exact: Array, p: Probe, near: float) -> Array | None:
    a, b = by_channel(value, p), by_channel(exact, p)
    size = (b * b).sum(axis=1)
    if not size.all() or not np.isfinite(a).all():
        return None
    ratio = (a * b).sum(axis=1) / size
    fits = np.abs(a - ratio[:, None] * b).max() <= near * np.abs(a).max()
    return ratio if fits and ratio.all() else None


def reduced(value: Array, steps: Steps, tolerance: float) -> str | None:
    """What a value of another shape is: a mean or a sum of a step over some axes, or a reshaped step."""
    p = steps.probe
    for name, exact in steps.whole.items():
        if (
            exact.size == value.size
            and value.size > p.channels
            and _equal(value.ravel(), exact.ravel(), tolerance)
        ):
            return f"{name} in the shape {value.shape}, which mixes the channels"
    known = {n: v for n, v in steps.whole.items() if n in ("x", "dy", "x²", "(x - μ)²", "dx̂", "dy x̂", "dx̂ x̂")}
    known |= {"dx̂ (x - μ)": steps.whole["dx̂ (x - μ)"]}
    for count in range(1, p.x.ndim + 1):
        for axes in combinations([a for a in range(p.x.ndim) if p.x.shape[a] > 1], count):
            taken = {"the variance of x": p.x.var(axis=axes)}
            taken |= {f"the mean of {n}": v.mean(axis=axes) for n, v in known.items()}
            taken |= {f"the sum of {n}": v.sum(axis=axes) for n, v in known.items()}
            for words, exact in taken.items():
                if exact.size == value.size and _equal(value.ravel(), exact.ravel(), tolerance):
                    return f"{words} over {'axes' if count > 1 else 'axis'} {str(axes).strip('(),')}"
    return None
