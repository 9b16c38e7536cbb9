"""Mistakes of rounding, which no formula shows: a one-pass variance that cancels, sums kept in float16.

They are told by how an error grows, on two batches made for it, and never from an ordinary batch.
"""

from collections.abc import Sequence

import numpy as np

from xhat.lens.checker import reference as computation
from xhat.lens.checker.adapter import Unjudged
from xhat.lens.checker.faults.mistakes import Mistake, turned
from xhat.lens.checker.probes import UNIT, Array, Probe, far_probe, heavy_probe
from xhat.lens.checker.runner import Trial

__all__ = ["TOLERANCE", "cancels", "coarse", "overflows"]

# What honest rounding can do to an output, relative to the terms that are summed in it.
TOLERANCE = {"float64": 1e-10, "float32": 3e-5, "float16": 1.5e-2, "bfloat16": 6e-2}


def coarse(dtypes: Sequence[str]) -> str:
    """The dtype of fewest digits among these; a dtype not listed has as many as float64."""
    return max((d for d in dtypes if d in UNIT), key=lambda d: UNIT[d], default="float64")


def cancels(trial: Trial, p: Probe, correction: int, forward: tuple[Mistake, ...], dtype: str) -> bool:
    """Whether the variance is mean(x^2) - mu^2: its error grows with the square of mu / sigma.

    With unit u and mu / sigma = d, two passes err by about u d and one pass by u d^2. At d = sqrt(0.02 / u) the
    second is 2 %, and at a thirtieth of that distance 900 times less."""
    unit = UNIT[dtype]
    distance = float(np.sqrt(0.02 / unit))
    if distance < 100:  # 16 bits have no room between the two
        return False
    bound = unit * distance**1.5
    far, near = (
        _error(trial, far_probe(p, d, trial.plan.dtype), correction, forward)
        for d in (distance, distance / 30)
    )
    if far is None or near is None:
        return False
    return far > bound and far > 100 * near


def _error(trial: Trial, p: Probe, correction: int, forward: tuple[Mistake, ...]) -> float | None:
    """The error of y, or of dgamma where there is no forward, relative to its size; None where the code can't run."""
    try:
        outputs = trial.run(p, correction).outputs
    except Unjudged:
        return None
    left = computation.forward(p, correction, turned(forward))
    exact: Array = left.y if "y" in outputs else p.total()(p.dy * left.xhat)
    found = outputs.get("y", outputs.get("dgamma"))
    if found is None or found.size != exact.size:
        return None
    if not np.isfinite(found).all():
        return np.inf
    spread = (
        np.abs(exact - exact.mean(axis=p.axes("all"), keepdims=True)).max()
        if "y" in outputs
        else np.abs(exact).max()
    )
    return float(np.abs(found.reshape(exact.shape) - exact).max() / spread)


def overflows(trial: Trial, p: Probe, correction: int) -> bool:
    """Whether sums above 65504 become infinite, though every value and every exact result is far below it."""
    try:
        outputs = trial.run(heavy_probe(p, trial.plan.dtype), correction).outputs
    except Unjudged:
        return False
    # dgamma and dbeta are such sums themselves; in float16 they may well end at infinity.
    judged = [v for name, v in outputs.items() if trial.plan.dtype != "float16" or name in ("y", "dx")]
    return any(not np.isfinite(v).all() for v in judged)
