"""A diagnosis on many processes: the moments of all ranks' batches in one exchange, and the scores of each pass.

All ranks then hold the same numbers, and judge alike. What the numbers mean must never be decided here.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xhat import equations
from xhat.torch.doctor.exactness import Errors
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.scatter import nothing
from xhat.torch.doctor.tap import Tap
from xhat.torch.sync import frames
from xhat.torch.sync.frames import FrameHeader
from xhat.torch.sync.merge import Moments, merged

if TYPE_CHECKING:
    from xhat.torch.doctor.measured import Measured

__all__ = ["header_of", "share_scores", "share_taps"]

Array = NDArray[np.float64]

CALLS = 2  # of a layer in a forward pass, whose moments are exchanged


def header_of(measured: "Measured") -> FrameHeader:
    """What the ranks compare: the number of layers, and of channels."""
    layers = measured.layers
    return FrameHeader(
        "population moments", f"a diagnosis of {len(layers)} layers", sum(x.channels for x in layers)
    )


def share_taps(measured: "Measured", group: str) -> None:
    """Merges the taps of all ranks; fills `counts`, and `differing` by the running statistics."""
    taps = [tap for mode in measured.taps.values() for tap in mode]
    mine = [np.array([measured.count, *_failed(measured)], float)]
    for tap in taps:
        mine += [_numbers(tap), *(np.concatenate(moments) for moments in _moments(tap))]
    mine += [np.concatenate(([_tracked(x)], *x.running)) for x in measured.layers if x.tracks]
    gathered = frames.gather(np.concatenate(mine), header_of(measured), group)
    parts = iter(np.split(gathered, np.cumsum([len(part) for part in mine])[:-1], axis=1))
    first = next(parts)
    measured.counts = [int(n) for n in first[:, 0]]
    measured.single_values = [x.path for x, n in zip(measured.layers, first[:, 1:].sum(0), strict=True) if n]
    for tap in taps:
        numbers = next(parts)
        _set(tap, numbers, [_merged(next(parts)) for _ in _moments(tap)])
    measured.differing = []
    for layer in measured.layers:
        if layer.tracks:
            tracked, mean, var = np.split(next(parts), [1, 1 + layer.channels], axis=1)
            rstd = equations.reciprocal_std(var[0], layer.eps, np.sqrt)
            apart = float(np.max(np.abs(mean - mean[0]) * rstd))
            if (mean != mean[0]).any() or (var != var[0]).any():
                measured.differing.append((layer.path, apart))
            first_tracked = None if np.isnan(tracked[0, 0]) else int(tracked[0, 0])
            layer.first_rank = first_tracked, mean[0], var[0]
    measured.differing.sort(key=lambda pair: -pair[1])


def _tracked(layer: Layer) -> float:
    return float("nan") if layer.tracked is None else float(layer.tracked)


def _failed(measured: "Measured") -> list[bool]:
    return [x.path in measured.single_values for x in measured.layers]


def _moments(tap: Tap) -> list[Moments]:
    if tap.scatter is not None:
        return [tap.scatter.samples, tap.scatter.batches]
    by_call = [*tap.by_call, *[nothing(tap.channels)] * CALLS][:CALLS]
    return [*tap.halves, tap.batch_means, tap.unpadded, *by_call]


def _numbers(tap: Tap) -> Array:
    e = tap.errors or Errors(0.0, 0.0, 0.0, "", "")
    never = tap.first_call if tap.first_call >= 0 else np.inf
    return np.array([
        tap.calls, tap.batches, tap.inverse_sizes, tap.smallest, tap.in_training, never, tap.dimensions, tap.not_finite,
        e.offset, e.theirs, e.ours,
    ], float)  # fmt: skip


def _merged(rows: Array) -> Moments:
    return merged(*np.split(rows, 3, axis=1))


def _set(tap: Tap, numbers: Array, moments: list[Moments]) -> None:
    """Makes the numbers of all ranks the tap's."""
    calls, batches, inverse_sizes, smallest, in_training, first_call, dimensions, not_finite, *_ = numbers.T
    tap.calls, tap.batches, tap.inverse_sizes = (
        int(calls.sum()),
        int(batches.sum()),
        float(inverse_sizes.sum()),
    )
    tap.smallest, tap.in_training = float(smallest.min()), bool(in_training.any())
    tap.first_call = int(first_call.min()) if np.isfinite(first_call.min()) else -1
    tap.dimensions, tap.not_finite = int(dimensions.max()), int(not_finite.sum())
    worst = numbers[numbers[:, 9].argmax(), 8:]
    kind = (tap.errors.dtype, tap.errors.layout) if tap.errors else ("float32", "contiguous")
    offset, theirs, ours = (float(v) for v in worst)
    tap.errors = Errors(offset, theirs, ours, *kind) if theirs else None
    if tap.scatter is not None:
        tap.scatter.samples, tap.scatter.batches = moments
        return
    even, odd, tap.batch_means, tap.unpadded, *by_call = moments
    tap.halves = [even, odd]
    tap.by_call = [call for call in by_call if call[0].any()]


def share_scores(rows: Any, measured: "Measured", group: str) -> Array:
    """(k, batches of this rank) → (k, batches of all ranks), in the order of the ranks."""
    rows = np.asarray(rows, float)
    most = max(measured.counts)
    padded = np.full((len(rows), most), np.nan)
    padded[:, : rows.shape[1]] = rows
    gathered = frames.gather(padded.ravel(), header_of(measured), group).reshape(-1, len(rows), most)
    return np.concatenate([rank[:, :n] for rank, n in zip(gathered, measured.counts, strict=True)], axis=1)
