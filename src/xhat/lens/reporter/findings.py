"""The channels to look at first, each with the reason in words.

Only rules live here: a rule takes the numbers of one layer and yields findings, the worst first. A finding about all
channels is yielded once, for the layer.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from xhat.lens.reporter.data import Layer

__all__ = ["FEW_VALUES", "HUGE_OFFSET", "MOST_REMOVED", "Finding", "findings"]

FEW_VALUES = 16  # per channel: the standard error of the variance is then above a third
HUGE_OFFSET = 100.0  # |mu| / std, from which a one-pass variance in float32 keeps fewer than four digits
MOST_REMOVED = 0.99  # share of the gradient's energy
FAR_MEAN = 1.0  # running standard deviations between the means of the batch and of evaluation
FAR_VARIANCE = 4.0  # factor between their variances
_LARGEST_FLOAT32, _LARGEST_FLOAT16 = 3.4e38, 65504


class Finding(NamedTuple):
    """The kind of finding, the channel (None: all channels), and the reason as a sentence."""

    kind: str
    channel: int | None
    reason: str
    rank: int = 0  # of its rule


def findings(layer: Layer) -> list[Finding]:
    """All findings of a layer, in the order of the rules."""
    return [f._replace(rank=rank) for rank, rule in enumerate(_RULES) for f in rule(layer)]


def _not_finite(layer: Layer) -> Iterator[Finding]:
    low, high = layer.columns["min"], layer.columns["max"]
    for c in np.flatnonzero(~np.isfinite(layer.columns["mu"] + layer.columns["var"])):
        reason = "NaN or infinity among the values: mean, variance and all y of the channel are lost."
        if np.isfinite(low[c]) and np.isfinite(high[c]):
            reason = (
                f"values from {_say(low[c])} to {_say(high[c])}: their squares overflow, even in float64."
            )
        yield Finding("not finite", int(c), reason)


def _overflows(layer: Layer) -> Iterator[Finding]:
    """Finite values whose squares, or results, exceed the largest number of the arithmetic or of the dtype."""
    if layer.dtype == "float64":
        return
    low, high, mu = (layer.columns[name] for name in ("min", "max", "mu"))
    with np.errstate(all="ignore"):
        far = np.maximum(np.abs(low - mu), np.abs(high - mu)) ** 2
    for c in _worst_first(far, (far > _LARGEST_FLOAT32) & np.isfinite(low) & np.isfinite(high)):
        yield Finding(
            "overflows float32",
            c,
            f"values from {_say(low[c])} to {_say(high[c])}: the squares of their deviations exceed "
            f"{_say(_LARGEST_FLOAT32)}, the largest float32, so that the variance is infinite there and y is β or NaN.",
        )
    if layer.dtype == "float16":
        for c in _worst_first(layer.columns["y_max"], layer.columns["y_max"] > _LARGEST_FLOAT16):
            reason = (
                f"y reaches {_say(layer.columns['y_max'][c])}, and the largest float16 is {_LARGEST_FLOAT16}."
            )
            yield Finding("overflows float16", c, reason)


def _constant(layer: Layer) -> Iterator[Finding]:
    value = layer.columns["min"]
    gain = 1 / np.sqrt(layer.eps)
    for c in np.flatnonzero((value == layer.columns["max"]) & np.isfinite(value)):
        count = "its only value is" if layer.m == 1 else f"all {layer.m:,} values are"
        reason = f"{count} {_say(value[c])}, so x̂ is 0 and y is β everywhere"
        if layer.fixed:
            reason = f"{count} {_say(value[c])}: the channel carries no information"
        elif layer.m > 1:
            reason += f"; the least variation would be enlarged by 1/√ε = {_say(gain)}"
        yield Finding("constant", int(c), reason + ".")


def _dominated_by_eps(layer: Layer) -> Iterator[Finding]:
    share, var = layer.columns["eps_share"], layer.columns["var"]
    varies = layer.columns["min"] < layer.columns["max"]
    for c in _worst_first(share, (share >= 0.5) & varies):
        yield Finding(
            "dominated by ε",
            c,
            f"the variance {_say(var[c])} is no larger than ε = {_say(layer.eps)}: x̂ has a standard deviation of "
            f"{np.sqrt(1 - share[c]):.2g} instead of 1, and {share[c] ** 2:.0%} of the gradient's energy along x̂ "
            "stays.",
        )


def _huge_offset(layer: Layer) -> Iterator[Finding]:
    varies = layer.columns["min"] < layer.columns["max"]
    with np.errstate(all="ignore"):
        ratio = np.abs(layer.columns["mu"]) / np.sqrt(layer.columns["var"])
    for c in _worst_first(ratio, (ratio >= HUGE_OFFSET) & np.isfinite(ratio) & varies):
        error = min(1.0, ratio[c] ** 2 * 2.0**-24)
        yield Finding(
            "huge offset",
            c,
            f"the mean is {_say(ratio[c])} standard deviations from zero: float32 keeps about "
            f"{max(0.0, 7.2 - np.log10(ratio[c])):.0f} digits of the deviations, and a one-pass variance in float32 "
            + ("none at all." if error == 1 else f"is off by about {error:.1g} of itself."),
        )


def _gamma_is_zero(layer: Layer) -> Iterator[Finding]:
    for c in np.flatnonzero(layer.columns["gamma"] == 0):
        yield Finding(
            "γ is 0", int(c), "y is β whatever x is, and no gradient reaches x; only γ and β can learn."
        )


def _few_values(layer: Layer) -> Iterator[Finding]:
    if layer.m <= FEW_VALUES and not layer.fixed:
        uncertain = "the variance of one value says nothing"
        if layer.m > 1:
            uncertain = f"the variance is uncertain by about {np.sqrt(2 / (layer.m - 1)):.0%}"
        values = f"{layer.m} value{'s' * (layer.m != 1)}"
        yield Finding("few values", None, f"every channel has {values} to estimate from: {uncertain}.")


def _no_gradient(layer: Layer) -> Iterator[Finding]:
    """Channels to which no gradient comes back; behind a ReLU, those whose y is nowhere positive are dead."""
    if not layer.has_gradient:
        return
    none = layer.columns["dy"] == 0
    if none.all():
        yield Finding("no gradient", None, "no gradient comes back to the output of this layer.")
        return
    for c in np.flatnonzero(none & (layer.columns["y_max"] <= 0)):
        yield Finding(
            "dead",
            int(c),
            f"y is at most {_say(layer.columns['y_max'][c])} and no gradient comes back: a ReLU behind it is 0 for the "
            "whole batch.",
        )


def _running_differs(layer: Layer) -> Iterator[Finding]:
    if "gap_mean" not in layer.columns:
        return
    far, factor = np.abs(layer.columns["gap_mean"]), layer.columns["gap_var"]
    with np.errstate(all="ignore"):
        worst = np.maximum(far / FAR_MEAN, np.abs(np.log(factor)) / np.log(FAR_VARIANCE))
    for c in _worst_first(worst, (worst >= 1) & np.isfinite(worst)):
        yield Finding(
            "running statistics differ",
            c,
            f"the batch's mean is {_say(far[c])} running standard deviations from the running mean, and its variance "
            f"{_say(factor[c])} times the running one: training and evaluation give another y.",
        )


def _little_left(layer: Layer) -> Iterator[Finding]:
    if not layer.has_gradient:
        return
    kept, cancellation = layer.columns["kept"], layer.columns["cancellation"]
    some = (layer.columns["direct"] > 0) & (layer.columns["min"] < layer.columns["max"])
    for c in _worst_first(1 - kept, (kept <= 1 - MOST_REMOVED) & some):
        yield Finding(
            "gradient removed",
            c,
            f"{1 - kept[c]:.2%} of the gradient's energy is removed by the paths through μ and σ²; the three paths "
            f"cancel to 1/{_say(cancellation[c])} of their lengths.",
        )


def _say(value: float) -> str:
    """Three digits, with a minus sign and without leading zeros in the exponent."""
    text = f"{value:.3g}"
    if "e" in text:
        digits, exponent = text.split("e")
        text = f"{digits}e{int(exponent)}"
    return text.replace("-", "−")


def _worst_first(measure: np.ndarray, chosen: np.ndarray) -> list[int]:
    found = np.flatnonzero(chosen)
    return [int(c) for c in found[np.argsort(-measure[found], kind="stable")]]


_RULES: tuple[Callable[[Layer], Iterator[Finding]], ...] = (
    _not_finite,
    _overflows,
    _few_values,
    _constant,
    _dominated_by_eps,
    _huge_offset,
    _running_differs,
    _gamma_is_zero,
    _no_gradient,
    _little_left,
)
