"""The model of docs/scaling.md: what the exchanges of a training step take on more ranks than were measured."""

from collections.abc import Sequence

import numpy as np

from benchmarks.harness.rows import Row

__all__ = ["fit", "predicted"]


def fit(rows: Sequence[Row], contestant: str) -> tuple[float, float, float]:
    """Microseconds a step of a ring (latency), and a kilobyte that passes it; and the largest misfit, as a factor.

        all-gather of n bytes a rank    t = (P - 1) (latency + n kilobyte)
        all-reduce                      t = 2 (P - 1) (latency + n / P kilobyte)

    by least squares of the logarithms' first order: every time weighs the same, whatever its size.
    """
    measured = [r for r in rows if r.what == "collective" and r.contestant == contestant]
    steps = [_steps(contestant, r.ranks, r.nbytes) for r in measured]
    t = np.array([r.p20 for r in measured])
    a = np.array(steps) / t[:, None]
    (latency, kilobyte), *_ = np.linalg.lstsq(a, np.ones(len(t)), rcond=None)
    misfit = np.abs(np.log(np.clip(a @ (latency, kilobyte), 1e-3, None))).max()
    return float(latency), float(kilobyte), float(np.exp(misfit))


def _steps(contestant: str, ranks: int, nbytes: float) -> tuple[float, float]:
    """How often the latency and a kilobyte count."""
    if contestant == "all-reduce":
        return 2 * (ranks - 1), 2 * (ranks - 1) / ranks * nbytes / 1e3
    return ranks - 1, (ranks - 1) * nbytes / 1e3


def predicted(
    latency: float, kilobyte: float, contestant: str, ranks: int, channels: int, depth: int
) -> float:
    """Microseconds of the exchanges of a step: forward and backward of so many layers."""
    header = 0 if contestant == "all-reduce" else 128
    return depth * sum(
        np.dot(_steps(contestant, ranks, header + 8 * n), (latency, kilobyte))
        for n in (3 + 2 * channels, 2 * channels)
    )
