"""Which layers are at fault: the moments of all batches in one layer at a time, and then in more, the best first."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measure import Runner, replayed
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.rules.relevance import is_relevant
from xhat.torch.doctor.signals import off

__all__ = ["attribute"]


def attribute(runner: Runner, again: Callable[[str], Iterable[Any]]) -> None:
    """Fills `swapped` and `together` of the measurements, if the pooled moments make the model better.

    The candidates are the layers whose statistics are farthest from the moments. Each is replaced alone, one pass
    over the batches each; then the best, the best two, and so on, until most of the gain is explained.
    """
    measured = runner.measured
    gap = measured.gap("evaluation", "pooled")
    if not is_relevant(measured, gap, "evaluation", "pooled"):
        return
    layers = [x for x in measured.layers if x.tracks and not x.fixed and measured.tap(x).batches]
    layers.sort(key=lambda layer: -_off(measured, layer))
    largest = _off(measured, layers[0]) if layers else 0.0
    layers = [x for x in layers if not _off(measured, x) < at.CANDIDATE * largest]
    candidates, measured.untried = layers[: at.SINGLE_SWAPS], max(0, len(layers) - at.SINGLE_SWAPS)
    for layer in candidates:
        measured.swapped[layer.path] = _swap(runner, [layer], again(f"{layer.path} alone"))
    candidates.sort(key=lambda layer: _ordered(measured.swapped[layer.path]))
    goal = gap.before - at.EXPLAINED * gap.gain if math.isfinite(gap.gain) else math.inf
    for k in range(1, min(len(candidates), at.JOINT_SWAPS) + 1):
        path = candidates[k - 1].path
        score = (
            measured.swapped[path] if k == 1 else _swap(runner, candidates[:k], again(f"{k} layers together"))
        )
        measured.together.append((path, score))
        if score < goal:
            return


def _swap(runner: Runner, layers: list[Layer], batches: Iterable[Any]) -> float:
    """The mean score with the pooled moments in these layers alone."""
    scores = replayed(runner, batches, layers, lambda tap: tap.pooled)
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if len(known) == len(scores) else math.nan


def _off(measured: Measured, layer: Layer) -> float:
    return off(layer, measured.tap(layer))


def _ordered(score: float) -> float:
    return math.inf if math.isnan(score) else score
