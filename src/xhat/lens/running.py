"""The running statistics of the code under test: which momentum, which correction, and whether they fit together.

running' = (1 - k) running + k batch. The weight k is solved for, so that any way of writing it is understood.
"""

from dataclasses import dataclass, field

import numpy as np

from xhat.lens import computation
from xhat.lens.computation import Knobs
from xhat.lens.probes import Array, Probe
from xhat.lens.trial import Seen

__all__ = ["Expected", "Running", "judge", "weight"]

_ACCEPTED = (
    (0, 0),
    (0, 1),
    (1, 1),
)  # (correction of the forward, of the running variance) that somebody means


@dataclass(frozen=True)
class Expected:
    """The conventions asked for; None: whatever the code uses, if it makes sense."""

    correction: int | None = None
    running_correction: int | None = None
    momentum: str | None = None  # "batch": the weight of the batch (PyTorch); "running": of the past (Keras)


@dataclass
class Running:
    """What was found: conventions, names of mistakes by output, and sentences for what has no name."""

    conventions: dict[str, str] = field(default_factory=dict)
    mistakes: list[tuple[str, str]] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)


def weight(before: list[Array], batch: list[Array], after: list[Array], tolerance: float) -> float | None:
    """The k of running' = (1 - k) running + k batch that fits every probe, or None."""
    step = np.concatenate([b.ravel() - a.ravel() for a, b in zip(before, batch, strict=True)])
    moved = np.concatenate([b.ravel() - a.ravel() for a, b in zip(before, after, strict=True)])
    k = float(step @ moved / (step @ step))
    size = max(np.abs(np.concatenate([a.ravel() for a in before])).max(), np.abs(step).max())
    return k if np.abs(moved - k * step).max() <= tolerance * size else None


def judge(
    probes: tuple[Probe, ...],
    seen: list[Seen],
    plain: Seen | None,
    correction: int,
    knobs: Knobs,
    expected: Expected,
    tolerance: float,
) -> Running:
    """Judge running_mean and running_var; `plain` is a run on the first probe with the code's own momentum."""
    found = Running()
    states = [computation.forward(p, correction, knobs) for p in probes]
    means, variances = [f.mu for f in states], {c: _variances(probes, states, correction, c) for c in (0, 1)}
    k_mean, k_var = None, None
    if all("running_mean" in s.running for s in seen):
        after = [s.running["running_mean"] for s in seen]
        k_mean = weight([p.running_mean for p in probes], means, after, tolerance)
        if k_mean is None:
            found.unnamed.append("running_mean is no average of the running mean and the batch's")
    if all("running_var" in s.running for s in seen):
        after = [s.running["running_var"] for s in seen]
        fits = {c: weight([p.running_var for p in probes], v, after, tolerance) for c, v in variances.items()}
        fits = {c: k for c, k in fits.items() if k is not None}
        if fits:
            running_correction, k_var = next(iter(fits.items()))
            _correction(found, correction, running_correction, expected)
        else:
            found.unnamed.append(
                "running_var is no average of the running variance and the batch's, with N or N - 1"
            )
    _momentum(found, probes, plain, (k_mean, k_var), (means, variances[0]), expected, tolerance)
    return found


def _variances(
    probes: tuple[Probe, ...], states: list[computation.Forward], ours: int, other: int
) -> list[Array]:
    return [f.var * ((p.count() - ours) / (p.count() - other)) for p, f in zip(probes, states, strict=True)]


def _correction(found: Running, correction: int, running: int, expected: Expected) -> None:
    found.conventions["running variance"] = "N - 1" if running else "N"
    wanted = expected.running_correction
    if (wanted is not None and running != wanted) or (
        wanted is None and (correction, running) not in _ACCEPTED
    ):
        found.mistakes.append(("running variance with the other correction", "running_var"))


def _momentum(
    found: Running,
    probes: tuple[Probe, ...],
    plain: Seen | None,
    weights: tuple[float | None, float | None],
    batch: tuple[list[Array], list[Array]],
    expected: Expected,
    tolerance: float,
) -> None:
    """momentum's sense: k = momentum is PyTorch's, k = 1 - momentum Keras's. Of a default, k is the small part."""
    given = probes[0].momentum
    senses = {"batch": given, "running": 1 - given}
    for i, (name, k) in enumerate(zip(("running_mean", "running_var"), weights, strict=True)):
        if k is None:
            continue
        sense = next((s for s, value in senses.items() if abs(value - k) < 100 * tolerance), None)
        own = _own_weight(probes[0], plain, name, batch[i][0], tolerance)
        if sense is None and abs(k) < 100 * tolerance:
            found.unnamed.append(f"{name} is not updated by the batch")
            continue
        said = {
            "batch": "weight of the batch",
            "running": "weight of the past",
            None: f"fixed, batch weighs {k:.3g}",
        }
        key = (
            "momentum"
            if found.conventions.get("momentum", said[sense]) == said[sense]
            else "momentum of running_var"
        )
        found.conventions[key] = said[sense]
        unlikely = (own if own is not None else k if sense is None else 0.0) > 0.5
        if unlikely if expected.momentum is None else sense not in (expected.momentum, None):
            found.mistakes.append(("momentum reversed", name))
        elif key != "momentum":
            found.mistakes.append(("momentum reversed", "running_mean or running_var: they differ"))


def _own_weight(p: Probe, plain: Seen | None, name: str, batch: Array, tolerance: float) -> float | None:
    """The weight of the batch with the momentum that the code has by itself."""
    if plain is None or name not in plain.running:
        return None
    step, moved = (batch - getattr(p, name)).ravel(), plain.running[name].ravel() - getattr(p, name).ravel()
    return float(step @ moved / (step @ step))
