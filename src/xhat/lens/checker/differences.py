"""The gradients of somebody's forward by central differences: what its backward should give, whatever the forward is.

Used where a forward has no name; good for six digits, and for float64 only.
"""

from dataclasses import replace

import numpy as np

from xhat.lens.checker.probes import Array, Probe
from xhat.lens.checker.runner import Seen, Trial

__all__ = ["own_gradients"]

_DIGITS = 1e-6
_OF = {"dx": "x", "dgamma": "gamma", "dbeta": "beta"}


def own_gradients(trial: Trial, p: Probe, seen: Seen) -> set[str]:
    """The outputs of the backward that are the derivative of sum(y dy) by their argument."""
    if trial.plan.dtype != "float64" or trial.forward is None:
        return set()
    alone = replace(trial, backward=None)
    return {
        output for output in _OF if output in seen.outputs and _agrees(alone, p, output, seen.outputs[output])
    }


def _agrees(trial: Trial, p: Probe, output: str, found: Array) -> bool:
    argument = getattr(p, _OF[output])
    if found.size != argument.size:
        return False
    slopes = np.array([_slope(trial, p, _OF[output], i) for i in range(argument.size)])
    size = max(float(np.abs(slopes).max()), float(np.abs(p.dy).max()))
    return bool(np.abs(slopes - found.ravel()).max() <= _DIGITS * size)


def _slope(trial: Trial, p: Probe, name: str, index: int) -> float:
    values = getattr(p, name)
    step = 1e-5 * float(np.abs(values).max())
    ends = []
    for sign in (1, -1):
        moved = values.copy()
        moved.ravel()[index] += sign * step
        y = trial.run(replace(p, **{name: moved})).outputs["y"]
        ends.append(float((y * p.dy).sum()))
    return (ends[0] - ends[1]) / (2 * step)
