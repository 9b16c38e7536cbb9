"""The running statistics of the code under test: which momentum, which correction, and whether they fit together.

running' = (1 - k) running + k batch. The weight k is solved for, so that any way of writing it is understood.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from xhat.lens.checker import reference as computation
from xhat.lens.checker.probes import Array, Probe
from xhat.lens.checker.reference import Forward, Knobs
from xhat.lens.checker.runner import Seen

__all__ = ["Expected", "Running", "judge"]

_NEAR = 0.02  # weights that are one, in any precision; the senses of the probes' momentum are 0.3 and 0.7
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


class Fit(NamedTuple):
    """The weight k of the batch, and how far the update is from what k gives."""

    weight: float
    error: float


def fit(before: list[Array], batch: list[Array], after: list[Array]) -> Fit:
    """The k of running' = (1 - k) running + k batch that fits all probes best."""
    start, end, new = (np.concatenate([a.ravel() for a in arrays]) for arrays in (before, after, batch))
    step, moved = new - start, end - start
    k = float(step @ moved / (step @ step))
    return Fit(k, float(np.abs(moved - k * step).max() / max(np.abs(start).max(), np.abs(step).max())))


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
    k_mean, k_var = None, None
    # The statistics that the forward made, mistakes and all; or the exact ones, where it kept these apart.
    states = [s for k in (knobs, Knobs()) if (s := _states(probes, correction, k))]
    if all("running_mean" in s.running for s in seen):
        before, after = [p.running_mean for p in probes], [s.running["running_mean"] for s in seen]
        best = min((fit(before, [f.mu for f in s], after) for s in states), key=lambda found: found.error)
        k_mean = best.weight if best.error <= tolerance else None
        if k_mean is None:
            found.unnamed.append("running_mean is no average of the running mean and the batch's")
    if all("running_var" in s.running for s in seen):
        before, after = [p.running_var for p in probes], [s.running["running_var"] for s in seen]
        fits = {
            (i, c): fit(before, _variances(probes, s, correction, c), after)
            for i, s in enumerate(states)
            for c in (0, 1)
        }
        (_, running_correction), best = min(fits.items(), key=lambda item: item[1].error)
        if best.error <= tolerance:
            k_var = best.weight
            _correction(found, correction, running_correction, expected)
        else:
            found.unnamed.append(
                "running_var is no average of the running variance and the batch's, with N or N - 1"
            )
    batch = [f.mu for f in states[0]], _variances(probes, states[0], correction, 0)
    _momentum(found, probes, plain, (k_mean, k_var), batch, expected)
    return found


def _states(probes: tuple[Probe, ...], correction: int, knobs: Knobs) -> list[Forward]:
    """The statistics of every probe; none where they are not one number for each channel."""
    states = [computation.forward(p, correction, knobs) for p in probes]
    fit = all(f.mu.size == f.var.size == p.channels for f, p in zip(states, probes, strict=True))
    return states if fit else []


def _variances(probes: tuple[Probe, ...], states: list[Forward], ours: int, other: int) -> list[Array]:
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
) -> None:
    """momentum's sense: k = momentum is PyTorch's, k = 1 - momentum Keras's. Of a default, k is the small part."""
    given = probes[0].momentum
    senses = {"batch": given, "running": 1 - given}
    for i, (name, k) in enumerate(zip(("running_mean", "running_var"), weights, strict=True)):
        if k is None:
            continue
        sense = next((s for s, value in senses.items() if abs(value - k) < _NEAR), None)
        own = _own_weight(probes[0], plain, name, batch[i][0])
        if sense is None and abs(k) < _NEAR:
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


def _own_weight(p: Probe, plain: Seen | None, name: str, batch: Array) -> float | None:
    """The weight of the batch with the momentum that the code has by itself."""
    if plain is None or name not in plain.running:
        return None
    return fit([getattr(p, name)], [batch], [plain.running[name]]).weight
