"""Rounding mistakes, which are invisible in exact arithmetic: one-pass variances that cancel, and float16 sums.

They are found by the growth of an error on special batches.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.conventions import PLAIN, Convention
from xhat.lens.checker.expected.probes import UNIT, Array, Probe, far_probe, heavy_probe
from xhat.lens.checker.faults import Mistake, with_faults

__all__ = ["TOLERANCE", "cancels", "coarse", "is_noise", "overflows"]

# Bounds on the error of a correct output, relative to its largest term.
TOLERANCE = {"float64": 1e-10, "float32": 3e-5, "float16": 1.5e-2, "bfloat16": 6e-2}


def coarse(dtypes: Sequence[str]) -> str:
    """The dtype with the fewest digits; unknown dtypes count as float64."""
    return max((d for d in dtypes if d in UNIT), key=lambda d: UNIT[d], default="float64")


def is_noise(runner: Runner, p: Probe, outputs: list[str]) -> bool:
    """Whether an output jumps by more than float64 does where x moves by 1e-6: it has float32 or less inside.

    A smooth output has a second difference of the order of 1e-12; the rounding of float32 leaves about 1e-8.
    """
    step = 1e-6 * np.abs(p.x).max() * np.sin(np.arange(p.x.size)).reshape(p.x.shape)
    runs = [runner.run(replace(p, x=p.x + k * step)).outputs for k in range(3)]
    for output in outputs:
        low, middle, high = (run[output] for run in runs)
        jump = np.abs(low - 2 * middle + high).max()
        if jump > 1e-9 * max(float(np.abs(middle).max()), 1e-300):
            return True
    return False


def cancels(
    runner: Runner,
    p: Probe,
    correction: int,
    forward: tuple[Mistake, ...],
    dtype: str,
    convention: Convention = PLAIN,
) -> bool:
    """Whether the variance is computed as mean(x^2) - mu^2, whose error grows with the square of mu / sigma.

    With unit roundoff u and mu / sigma = d, the error is about u d for two passes, and u d^2 for one. At
    d = sqrt(0.02 / u) the latter is 2 %, and 900 times less at a thirtieth of this distance.
    """
    unit = UNIT[dtype]
    distance = float(np.sqrt(0.02 / unit))
    if distance < 100:  # 16-bit dtypes can't separate the two
        return False
    bound = unit * distance**1.5
    far, near = (
        _error(runner, far_probe(p, d, runner.spec.dtype), correction, forward, convention)
        for d in (distance, distance / 30)
    )
    if far is None or near is None:
        return False
    return far > bound and far > 100 * near


def _error(
    runner: Runner, p: Probe, correction: int, forward: tuple[Mistake, ...], convention: Convention
) -> float | None:
    """The relative error of y, or of dgamma if there is no forward; None if the code can't run."""
    try:
        outputs = runner.run(p, correction).outputs
    except Unjudged:
        return None
    f = convention.activated(reference.forward(convention.scaled(p), correction, with_faults(forward)))
    exact: Array = f.y if "y" in outputs else p.total()(p.dy * f.xhat)
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


def overflows(runner: Runner, p: Probe, correction: int) -> bool:
    """Whether sums above 65504 become infinite, although all inputs and exact results are far below."""
    try:
        outputs = runner.run(heavy_probe(p, runner.spec.dtype), correction).outputs
    except Unjudged:
        return False
    # dgamma and dbeta are such sums themselves, and may be infinite in float16.
    judged = [v for name, v in outputs.items() if runner.spec.dtype != "float16" or name in ("y", "dx")]
    return any(not np.isfinite(v).all() for v in judged)
