"""What the buffers of stored batch norms mean. Nothing is read from files here, and no model is known.

Without batches nothing is measured. Harmful is only what gives wrong outputs for any input.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from xhat.torch.doctor.findings import Finding, Severity
from xhat.torch.doctor.observed import observation
from xhat.torch.doctor.stored import Stored
from xhat.torch.doctor.thresholds import ALIKE, DEAD, LEFT, SMALL_SHARE

__all__ = ["judge"]

FLOAT16_MAX = 65504.0
# A state dict has no eps; torch's default is compared with.
EPS = 1e-5
# The momenta that a checkpoint may have been trained with.
MOMENTA = (0.1, 0.01)
# The names that people give to batch norms.
NAMED = re.compile(r"(^|[._])(bn|batch_?norm)\d*($|[._])", re.IGNORECASE)


RECALIBRATE = "xt.recalibrate(model.eval(), batches)"


# Running statistics of 0 and 1 by what is beside them: the cause, how bad it is, what is seen, the remedy and its code.
INITIAL: dict[str, tuple[str, Severity, str, str, str]] = {
    "never": (
        "statistics-never-updated", "harmful",
        "no batch was counted, and their parameters have been trained",
        "Save the buffers too, and copy or average them with the parameters (EMA); for this checkpoint, recalibrate.",
        RECALIBRATE,
    ),
    "momentum": (
        "momentum", "harmful",
        "although batches were counted and their parameters have been trained: the momentum was 0",
        "Set the momentum to 0.1 in training; for this checkpoint, recalibrate.",
        f"for m in model.modules():\n    if hasattr(m, 'momentum'):\n        m.momentum = 0.1\n{RECALIBRATE}",
    ),
    "uncounted": (
        "statistics-never-updated", "risk",
        "and their parameters have been trained, which is right only if statistics were folded into these",
        "If they were not folded, recalibrate.",
        RECALIBRATE,
    ),
    "untrained": (
        "statistics-never-updated", "note",
        "and their parameters are as they were initialized",
        "Nothing, if the model has not been trained, or if it does not use these layers.",
        "",
    ),
}  # fmt: skip


def judge(layers: list[Stored]) -> list[Finding]:
    """All findings of one state dict."""
    norms = [layer for layer in layers if layer.tracks]
    rules = (_not_finite, _negative, _never_updated, _not_converged, _range, _dead, _eps, _repeated)
    return [finding for rule in rules for finding in rule(norms)] + list(_missing(layers))


def _paths(layers: Sequence[Stored]) -> list[str]:
    return [layer.path for layer in layers]


def _count(layers: Sequence[Stored]) -> str:
    return "1 layer" if len(layers) == 1 else f"{len(layers)} layers"


def _not_finite(norms: list[Stored]) -> Iterator[Finding]:
    def infinite_half(layer: Stored) -> bool:
        return (
            layer.dtype == torch.float16 and not np.isnan(layer.var).any() and not np.isnan(layer.mean).any()
        )

    bad = [n for n in norms if not (np.isfinite(n.mean).all() and np.isfinite(n.var).all())]
    halves = [layer for layer in bad if infinite_half(layer)]
    others = [layer for layer in bad if not infinite_half(layer)]
    if halves:
        yield observation(
            "range-of-float16", "harmful", _paths(halves),
            f"The running statistics of {_count(halves)} are infinite in float16, which ends at 65504.",
            "(x - mean) / sqrt(infinity) is 0: these channels give the bias whatever their input is.",
            "Take the statistics from a checkpoint in float32, or recalibrate with float32 statistics.",
            f"model, _ = xt.convert(model)  # float32 statistics\n{RECALIBRATE}",
        )  # fmt: skip
    if others:
        channels = sum(int((~np.isfinite(n.mean) | ~np.isfinite(n.var)).sum()) for n in others)
        yield observation(
            "statistics-not-finite", "harmful", _paths(others),
            f"The running statistics of {_count(others)} hold NaN or infinity, in {channels} channels.",
            "One batch with NaN or infinity, or of one value per channel, stays in a running average for ever.",
            'Recalibrate, and train with nonfinite="skip" or find the batch.', RECALIBRATE, channels=channels,
        )  # fmt: skip


def _negative(norms: list[Stored]) -> Iterator[Finding]:
    bad = [layer for layer in norms if (layer.var < -EPS).any()]
    if bad:
        least = min(float(np.nanmin(layer.var)) for layer in bad)
        yield observation(
            "statistics-not-finite", "harmful", _paths(bad),
            f"The running variance of {_count(bad)} is negative, down to {least:.3g}.",
            "sqrt(var + eps) of a negative variance is NaN. Differences of checkpoints and extrapolated averages give "
            "such values.",
            "Recalibrate.", RECALIBRATE, least=least,
        )  # fmt: skip


def _drawn_alike(layers: list[Stored]) -> bool:
    """Whether the biases of all layers look like samples of one normal distribution around 0.

    Some networks are initialized so (RepVGG). After training, layers differ by more than ALIKE standard errors, which
    are sigma / sqrt(C) for the mean and sigma / sqrt(2 C) for the deviation of C values.
    """
    biases = [layer.bias for layer in layers if layer.bias is not None and len(layer.bias) >= 8]
    if len(biases) < 3:
        return False
    sigma = float(np.concatenate(biases).std())
    errors = [np.sqrt(len(b)) / sigma * max(abs(b.mean()), np.sqrt(2) * abs(b.std() - sigma)) for b in biases]
    return bool(max(errors) < ALIKE)


def _never_updated(norms: list[Stored]) -> Iterator[Finding]:
    """Running statistics of 0 and 1: harmful beside trained parameters, if the layer's counter says so as well."""
    trained = [layer for layer in norms if layer.trained]
    trained = [] if _drawn_alike(trained) else trained
    groups: dict[str, list[Stored]] = {"never": [], "momentum": [], "uncounted": [], "untrained": []}
    for layer in (layer for layer in norms if layer.initial):
        if layer not in trained and not (layer.weight is None and trained):
            groups["untrained"].append(layer)
        else:
            groups["uncounted" if layer.tracked is None else "momentum" if layer.tracked else "never"].append(
                layer
            )
    for kind, layers in groups.items():
        if layers:
            cause, severity, words, remedy, code = INITIAL[kind]
            yield observation(
                cause, severity, _paths(layers),
                f"The running statistics of {_count(layers)} are exactly 0 and 1, {words}.",
                "In evaluation these layers subtract 0 and divide by 1, whatever their weights were trained with.",
                remedy, code, batches=max(layer.tracked or 0 for layer in layers),
            )  # fmt: skip


def _not_converged(norms: list[Stored]) -> Iterator[Finding]:
    """The weight of the initial variance 1 is at most the least running variance, whatever the momentum was."""
    counted = [n for n in norms if n.tracked and not n.initial and np.isfinite(n.var).all()]
    if not counted:
        return
    batches, least = max(n.tracked or 0 for n in counted), min(float(n.var.min()) for n in counted)
    left = {momentum: (1 - momentum) ** batches for momentum in MOMENTA}
    possible = {momentum: weight for momentum, weight in left.items() if LEFT < weight <= least}
    if possible:
        words = ", and ".join(
            f"{weight:.0%} with momentum {momentum}" for momentum, weight in possible.items()
        )
        yield observation(
            "statistics-not-converged", "risk" if MOMENTA[0] in possible else "note", _paths(counted),
            f"The layers have counted {batches} batches. Of the initial values 0 and 1, {words} would be left.",
            "The initial values lose their weight as (1 - momentum)^batches; a state dict does not have the momentum. "
            "Recalibrated statistics are exact after a few batches.",
            "Train longer, or recalibrate.", RECALIBRATE,
            batches=batches, left={str(momentum): weight for momentum, weight in possible.items()},
        )  # fmt: skip


def _range(norms: list[Stored]) -> Iterator[Finding]:
    def largest(layer: Stored) -> float:
        values = np.abs(np.concatenate([layer.mean, layer.var]))
        return float(values[np.isfinite(values)].max(initial=0))

    wide = sorted((n for n in norms if largest(n) > FLOAT16_MAX), key=largest, reverse=True)
    if wide:
        yield observation(
            "range-of-float16", "risk", _paths(wide),
            f"The running statistics of {_count(wide)} reach {largest(wide[0]):.4g}, and float16 ends at 65504.",
            "After model.half() they are infinite, and these channels give the bias whatever their input is.",
            "Keep the statistics in float32: autocast, or xhat's layers, which do so.",
            "model, _ = xt.convert(model)\nmodel.half()", largest=largest(wide[0]),
        )  # fmt: skip


def _dead(norms: list[Stored]) -> Iterator[Finding]:
    dead = {n.path: int((np.abs(n.var) < DEAD * EPS).sum()) for n in norms if not n.initial}
    dead = {path: count for path, count in dead.items() if count}
    if dead:
        paths = sorted(dead, key=lambda path: -dead[path])
        yield observation(
            "dead-channels", "note", paths,
            f"{sum(dead.values())} channels have a variance below {DEAD * EPS:g}: their inputs were constant.",
            f"eps alone keeps their gain finite: 1 / sqrt(eps) is {EPS**-0.5:.0f} for eps = {EPS:g}, so that whatever "
            "else reaches them in use is amplified.",
            "Prune these channels, and never fold or freeze these layers without eps.", "",
            channels=sum(dead.values()),
        )  # fmt: skip


def _eps(norms: list[Stored]) -> Iterator[Finding]:
    share = {n.path: float(((n.var >= DEAD * EPS) & (n.var < EPS)).mean()) for n in norms}
    small = sorted((path for path in share if share[path] > SMALL_SHARE), key=lambda path: -share[path])
    if small:
        yield observation(
            "eps-dominates", "note", small,
            f"In {small[0]}, {share[small[0]]:.0%} of the channels have a variance below {EPS:g}, torch's "
            "default of eps.",
            "The output of such channels depends on eps as much as on the variance.",
            "Load the checkpoint into layers with the eps of its training.", "", share=share[small[0]],
        )  # fmt: skip


def _repeated(norms: list[Stored]) -> Iterator[Finding]:
    counts = Counter(layer.tracked for layer in norms if layer.tracked)
    if not counts:
        return
    usual, layers_of_it = counts.most_common(1)[0]
    more = [n for n in norms if n.tracked and usual and n.tracked > usual and n.tracked % usual == 0]
    if more and usual and layers_of_it > 1:
        most = max((layer.tracked or 0) // usual for layer in more)
        yield observation(
            "layer-used-more-than-once", "note", _paths(more),
            f"{_count(more)} counted up to {most} times as many batches as the {layers_of_it} layers with {usual}.",
            "A layer that is called several times in a forward pass counts each call; one pair of running statistics "
            "serves inputs that may differ.",
            "Give each use its own batch norm if the inputs are of different kinds.", "", times=most, usual=usual,
        )  # fmt: skip


def _missing(layers: list[Stored]) -> Iterator[Finding]:
    """Modules that are called batch norms, and have a weight and a bias alone."""

    def bare(layer: Stored) -> bool:
        vectors = (
            layer.weight is not None and layer.bias is not None and layer.weight.shape == layer.bias.shape
        )
        return vectors and not len(layer.mean) and not len(layer.var) and bool(NAMED.search(layer.path))

    missing = [layer for layer in layers if bare(layer)]
    if missing:
        beside = sum(layer.tracks for layer in layers)
        yield observation(
            "missing-statistics", "risk", _paths(missing),
            f"{_count(missing)} named like batch norms have weight and bias, and no running statistics"
            f"{f'; {beside} others have them' if beside else ''}.",
            "A checkpoint of parameters alone leaves the running statistics of a new model at 0 and 1. Nothing is "
            "missing if these are other normalizations, or batch norms with track_running_stats=False.",
            "Save model.state_dict(), which has the buffers; for this checkpoint, recalibrate after loading it.",
            f"model.load_state_dict(state, strict=False)\n{RECALIBRATE}", others=beside,
        )  # fmt: skip
