"""Running statistics that do not fit the model or the data: evaluation is bad, and good with the pooled moments."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import Finding, Proof, Severity, Unjudged
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.rules.relevance import is_relevant, listed, tried
from xhat.torch.doctor.rules.texts import TEXTS
from xhat.torch.doctor.signals import Gap, deviation, most, off

__all__ = ["CAUSES", "judge"]

CAUSES = (
    "statistics-not-finite",
    "statistics-never-updated",
    "momentum",
    "statistics-not-converged",
    "dropout-before-batch-norm",
    "statistics-of-other-data",
    "statistics-of-other-weights",
)


def judge(measured: Measured) -> Iterator[Finding | Unjudged]:
    """Findings for layers with running statistics; harmful where the pooled moments make the model better."""
    layers = [x for x in measured.layers if x.tracks and not x.fixed]
    if not layers:
        return
    gap = measured.gap("evaluation", "pooled")
    if not gap.defined:
        reason = measured.failures.get("batch", "the outputs could not be compared")
        yield from (Unjudged(cause, f"mode C did not run: {reason}") for cause in CAUSES)
    harmful = is_relevant(measured, gap, "evaluation", "pooled")
    groups = _by_cause(measured, layers, harmful)
    known = {x.path for found in groups.values() for x in found}
    culprits = [path for path, _ in measured.together if path in known]
    for cause, found in groups.items():
        found.sort(
            key=lambda x: (
                culprits.index(x.path) if x.path in culprits else len(culprits),
                -_off(measured, x),
            )
        )
        blamed = harmful and (not culprits or any(x.path in culprits for x in found))
        lag = cause == "statistics-of-other-weights" and not _beyond_lag(measured, gap, found)
        severity: Severity = (
            "harmful" if blamed and not lag else "risk" if blamed or cause in _RISKS else "note"
        )
        gained = gap.defined and severity != "note" and gap.gain > 0
        proof = Proof(measured.quantity, gap.before, gap.after) if gained else None
        yield _finding(measured, cause, severity, found, proof)
    reached = [x for x in layers if measured.tap(x).not_finite]
    if reached and "statistics-not-finite" not in groups:
        yield _not_finite_soon(measured, reached)


def _not_finite_soon(measured: Measured, layers: list[Layer]) -> Finding:
    """Batches with NaN or infinity, which have not reached the running statistics yet."""
    tap, text = measured.tap(layers[0]), TEXTS["statistics-not-finite"]
    count = f"{tap.not_finite} of {tap.calls} inputs hold{'s' * (tap.not_finite == 1)}"
    return Finding(
        "statistics-not-finite", "risk", tuple(x.path for x in layers[: at.LISTED]),
        f"{listed(layers[0], layers)}: {count} NaN or infinity; a training step with such a batch leaves its running "
        "statistics without a finite value, for good. The pooled moments here are those of the other batches.",
        {"layers": len(layers), "inputs": tap.not_finite, "of": tap.calls},
        text.why, "Find the batch, or leave it out of the statistics.",
        'model, _ = xt.convert(model)\nlayer.nonfinite = "skip"', None,
    )  # fmt: skip


def _beyond_lag(measured: Measured, gap: Gap, layers: list[Layer]) -> bool:
    """Whether this is more than in the middle of a training, whose weights move faster than the average follows.

    It is, by its gain; or by statistics that are far off after many batches, where a batch's own scatter is small.
    """
    if gap.gain > (at.LAG_GAIN * abs(gap.after) if measured.quantity == "loss" else at.LAG_DISTANCE):
        return True
    settled = [
        x
        for x in layers
        if (x.tracked or 0) * (x.momentum or 0) >= at.SETTLED and not measured.signals(x).noise > at.NOISE
    ]
    return any(_off(measured, x) > at.FAR for x in settled)


def _by_cause(measured: Measured, layers: list[Layer], harmful: bool) -> dict[str, list[Layer]]:
    """The layers by their causes: what their own numbers show, or else what the comparison shows."""
    apart = _apart(measured, layers) if harmful else []
    by_signals = _by_signals(measured, layers, apart)
    # Where the initial values explain one layer's statistics, they have their weight in those of the others too.
    explained = any(_initial_explains(measured, x) for x in layers)
    groups: dict[str, list[Layer]] = {}
    for layer in layers:
        cause = _structural(measured, layer, harmful, explained) or (by_signals if layer in apart else None)
        if cause:
            groups.setdefault(cause, []).append(layer)
    return groups


def _apart(measured: Measured, layers: list[Layer]) -> list[Layer]:
    """The layers whose statistics do not fit, in a model that is better with others; none if no others fit."""
    gap = measured.gap("evaluation", "pooled")
    if measured.quantity == "loss":
        if is_relevant(measured, measured.gap("pooled", "batch"), "pooled", "batch"):
            return []
        # Statistics of layers with another eps fit when eps is right: that remedy explains the harm as well.
        gained = [proof.before - proof.after for proof in _with_another_eps(measured)]
        if any(gain >= at.EXPLAINED * gap.gain for gain in gained):
            return []
    # Running averages of very small batches scatter too: they have to be farther off.
    noisy = any(measured.signals(x).noise > at.NOISE for x in layers)
    apart = [x for x in layers if _off(measured, x) > (at.FAR if noisy else at.AGREES)]
    large = measured.quantity == "loss" and gap.gain > at.GAIN_BY_SWAPS * abs(gap.after)
    if not apart and not noisy and large:
        culprits = [path for path, _ in measured.together]
        return [x for x in layers if x.path in culprits]
    return apart


def _with_another_eps(measured: Measured) -> list[Proof]:
    proofs = [tried(measured, name) for name in measured.trials if name.startswith("eps=")]
    return [proof for proof in proofs if proof]


_RISKS = ("statistics-never-updated", "statistics-not-finite", "momentum")


def _structural(measured: Measured, layer: Layer, harmful: bool, explained: bool) -> str | None:
    """The cause that the layer's own numbers show."""
    mean, var = layer.running
    if _unusable(layer).any():
        return "statistics-not-finite"
    initial = bool((mean == 0).all() and (var == 1).all())
    if layer.momentum == 0:
        return "momentum" if layer.tracked or not initial else "statistics-never-updated"
    if initial or (layer.tracked == 0 and layer.left == 1 and _near_initial(mean, var)):
        return "statistics-never-updated"
    if layer.momentum is not None and layer.momentum > at.REVERSED_MOMENTUM:
        return "momentum"
    if layer.tracked and explained and _left(measured, layer, harmful) > at.LEFT:
        return "statistics-not-converged"
    return None


def _left(measured: Measured, layer: Layer, harmful: bool) -> float:
    """The weight of the initial values; or what the initial mean 0 is off by that weight, in deviations, if more.

    A mean of 2e5 deviations has not converged when the initial values weigh 3e-6. Statistics that agree have,
    unless the model is harmed: then small deviations of many layers add up.
    """
    tap = measured.tap(layer)
    if layer.left is None or not tap.batches or not (harmful or _off(measured, layer) > at.AGREES):
        return 0.0
    with np.errstate(all="ignore"):
        offset = np.abs(tap.pooled[1]) / tap.sigma
    return layer.left * max(1.0, most(offset) * at.LEFT / at.AGREES)


def _initial_explains(measured: Measured, layer: Layer) -> bool:
    """Whether the statistics fit better without the share that the initial 0 and 1 have in them by the momentum."""
    tap, left = measured.tap(layer), layer.left or 0.0
    if not tap.batches or left == 1:
        return True
    mean, var = layer.running
    with np.errstate(all="ignore"):
        shift = np.abs(mean / (1 - left) - tap.pooled[1]) / tap.sigma
        later = np.fmax((var - left) / (1 - left), 0)
        ratio = np.abs(np.log((later + layer.eps) / (tap.variance + layer.eps)))
    return bool(max(most(shift), most(ratio)) < at.EXPLAINED_BY_INITIAL * _off(measured, layer))


def _unusable(layer: Layer) -> np.ndarray:
    """The channels whose result is no number whatever the input is; a variance below -eps has no root."""
    mean, var = layer.running
    return ~np.isfinite(mean) | ~np.isfinite(var) | (var < -layer.eps)


def _near_initial(mean: np.ndarray, var: np.ndarray) -> bool:
    return bool(np.abs(mean).max() < 1e-6 and np.abs(var - 1).max() < 1e-6)


def _by_signals(measured: Measured, layers: list[Layer], apart: list[Layer]) -> str | None:
    """The cause by comparison with what the layers get. One cause: behind the first layer, all others follow."""
    if not apart:
        return None
    if any(_fits_with_dropout(measured, x) for x in apart):
        return "dropout-before-batch-norm"
    first = next(x for x in layers if measured.tap(x).batches)
    largest = max(_off(measured, x) for x in apart)
    if _off(measured, first) > max(at.AGREES, at.FIRST_LAYER * largest) and _input_changed(measured, first):
        return "statistics-of-other-data"
    return "statistics-of-other-weights"


def _fits_with_dropout(measured: Measured, layer: Layer) -> bool:
    """Whether the running statistics agree with what the layer gets while dropout is on, and only then."""
    if not measured.tap(layer, "train").batches or _variance_ratio(measured, layer) <= at.DROPOUT_RATIO:
        return False
    return max(deviation(layer, measured.tap(layer, "train"))) < _off(measured, layer) / 2


def _input_changed(measured: Measured, first: Layer) -> bool:
    """Whether the first layer shows another input, and not other weights before it.

    Other weights of a layer that reads centered data change the variances, and hardly the means; so does another
    contrast, which is the rarer of the two.
    """
    return deviation(first, measured.tap(first))[0] > at.AGREES


def _off(measured: Measured, layer: Layer) -> float:
    """How far the running statistics are from the pooled moments; infinite where they are not finite."""
    return off(layer, measured.tap(layer))


def _variance_ratio(measured: Measured, layer: Layer) -> float:
    """The median over channels of the variance as trained over that without dropout."""
    with np.errstate(all="ignore"):
        ratio = measured.tap(layer, "train").variance / measured.tap(layer).variance
    return float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else 1.0


def _finding(
    measured: Measured, cause: str, severity: Severity, layers: list[Layer], proof: Proof | None
) -> Finding:
    worst = layers[0]
    s = measured.signals(worst)
    evidence: dict[str, Any] = {
        "layers": len(layers),
        "shift": s.shift,
        "log_variance": s.log_variance,
        "num_batches_tracked": worst.tracked,
        "momentum": worst.momentum,
        "left": worst.left,
    }
    symptom = _symptom(measured, cause, layers, evidence)
    if severity == "harmful" and measured.together:
        repaired, score = [path for path, _ in measured.together], measured.together[-1][1]
        evidence |= {"repaired": repaired, "repair": score, "not_tried": measured.untried}
        count = f"{len(repaired)} layer{'s' * (len(repaired) > 1)}"
        symptom += f"; with {count} of the model repaired, the {measured.quantity} is {score:.4g}"
    paths, text = tuple(x.path for x in layers[: at.LISTED]), TEXTS[cause]
    return Finding(cause, severity, paths, symptom + ".", evidence, text.why, text.remedy, text.code, proof)


def _symptom(measured: Measured, cause: str, layers: list[Layer], evidence: dict[str, Any]) -> str:
    """What was seen, in words; the numbers in it that evidence lacks are added there."""
    worst, who = layers[0], listed(layers[0], layers)
    factor = np.exp(evidence["log_variance"])
    how_far = (
        f"the mean is off by {evidence['shift']:.2g} deviations and the variance by a factor of {factor:.3g}"
    )
    if cause == "statistics-never-updated":
        return f"{who}: running_mean is 0 and running_var is 1, after {worst.tracked} batches"
    if cause == "statistics-not-finite":
        evidence["channels"] = channels = int(_unusable(worst).sum())
        return f"{who}: NaN, infinity or a negative variance in {channels} of {worst.channels} channels"
    if cause == "momentum":
        return f"{who}: momentum={worst.momentum}; {how_far}"
    if cause == "statistics-not-converged":
        evidence["steps_missing"] = missing = steps_missing(worst)
        return (
            f"{who}: after {worst.tracked} batch{'es' * (worst.tracked != 1)} at momentum {worst.momentum:g}, the "
            f"initial values still weigh {100 * (worst.left or 0):.0f} %; {missing} steps are missing"
        )
    if cause == "dropout-before-batch-norm":
        evidence["variance_ratio"] = ratio = _variance_ratio(measured, worst)
        return f"{who}: {how_far}; the variance in training is {ratio:.3g} times that in evaluation"
    return f"{who}: {how_far}"


def steps_missing(layer: Layer) -> int:
    """The steps after which the initial values weigh `LEFT_ENOUGH`, less those that were taken."""
    if not layer.momentum or layer.momentum >= 1:
        return 0
    needed = math.ceil(math.log(at.LEFT_ENOUGH) / math.log1p(-layer.momentum))
    return max(0, needed - (layer.tracked or 0))
