"""Numbers at the ends of what a dtype or eps can hold: dead channels, eps, lost digits, float16; and padding."""

from collections.abc import Iterator

import numpy as np

from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import Finding, Unjudged
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.rules.relevance import listed, tried
from xhat.torch.doctor.trials import loses_digits

__all__ = ["judge"]


def judge(measured: Measured) -> Iterator[Finding | Unjudged]:
    """Findings of all these kinds."""
    yield from _dead(measured)
    yield from _eps(measured)
    yield from _digits(measured)
    yield from _float16(measured)
    yield from _padding(measured)


def _paths(layers: list[Layer]) -> tuple[str, ...]:
    return tuple(x.path for x in layers[: at.LISTED])


def _variance(measured: Measured, layer: Layer) -> np.ndarray:
    """The larger of running variance and that of these batches (C,)."""
    var = measured.tap(layer).variance if measured.tap(layer).batches else np.zeros(layer.channels)
    return np.fmax(var, layer.running[1]) if layer.tracks else var


def _floor(layer: Layer) -> float:
    """eps, or torch's default where there is none: FrozenBatchNorm2d can have 0."""
    return float(layer.eps) or min(at.COMMON_EPS)


def _dead(measured: Measured) -> Iterator[Finding]:
    found = []
    for layer in measured.layers:
        if measured.tap(layer).batches:
            dead = int((_variance(measured, layer) < at.DEAD * _floor(layer)).sum())
            found += [(dead, layer)] if dead else []
    if not found:
        return
    found.sort(key=lambda pair: -pair[0] / pair[1].channels)
    dead, worst = found[0]
    layers = [x for _, x in found]
    gain = worst.eps**-0.5 if worst.eps else float(np.min(_variance(measured, worst))) ** -0.5
    yield Finding(
        "dead-channels", "risk", _paths(layers),
        f"{listed(worst, layers)}: {dead} of {worst.channels} channels are constant (variance below "
        f"{at.DEAD * _floor(worst):g}).",
        {"layers": len(layers), "channels": dead, "gain": gain},
        f"Such a channel gives its bias; what reaches it one day is multiplied by up to {gain:.3g}.",
        "Prune the channels, or look for filters whose activation is never positive.",
        "dead = layer.running_var < 1e-3 * layer.eps",
    )  # fmt: skip


def _eps(measured: Measured) -> Iterator[Finding]:
    for name, (layers, _) in measured.trials.items():
        proof = tried(measured, name) if name.startswith("eps=") else None
        if proof and not any(f.after < proof.after for other in measured.trials if other.startswith("eps=")
                             for f in [measured.trial(other)]):  # fmt: skip
            yield Finding(
                "eps-dominates", "harmful", _paths(layers),
                f"{listed(layers[0], layers)}: eps is {layers[0].eps:g}, and the model is better with {name}.",
                {"layers": len(layers), "eps": layers[0].eps, "better": name},
                "The variances are so small that eps decides the scale; the weights were trained with another eps.",
                f"Set the eps of the framework that trained the weights ({name}).",
                f"layer.{name.replace('=', ' = ')}",
                proof,
            )  # fmt: skip
            return
    found = []
    for layer in measured.layers:
        if measured.tap(layer).batches:
            var = _variance(measured, layer)
            live = var >= at.DEAD * layer.eps
            share = float((var[live] < at.EPS_LARGE * layer.eps).mean()) if live.any() else 0.0
            found += [(share, layer)] if share > at.EPS_SHARE else []
    if found:
        found.sort(key=lambda pair: -pair[0])
        share, worst = found[0]
        layers = [x for _, x in found]
        yield Finding(
            "eps-dominates", "risk", _paths(layers),
            f"{listed(worst, layers)}: {100 * share:.0f} % of the channels have a variance below {at.EPS_LARGE:g} eps "
            f"(eps = {worst.eps:g}).",
            {"layers": len(layers), "share": share, "eps": worst.eps},
            "The result depends on eps: another framework's eps, or a conversion that changes it, changes the output.",
            "Scale the layer's input, or take a smaller eps and train with it.",
            "nn.BatchNorm2d(C, eps=1e-7)",
        )  # fmt: skip


def _digits(measured: Measured) -> Iterator[Finding]:
    layers = [x for x in measured.layers if loses_digits(measured, x)]
    if not layers:
        return
    errors = {x.path: max((e for mode in ("evaluation", "batch") if (e := measured.tap(x, mode).errors)),
                          key=lambda e: e.theirs) for x in layers}  # fmt: skip
    layers.sort(key=lambda x: -errors[x.path].theirs)
    e, proof = errors[layers[0].path], tried(measured, "digits-lost")
    yield Finding(
        "digits-lost", "harmful" if proof else "risk", _paths(layers),
        f"{listed(layers[0], layers)}: |mean| is {e.offset:.3g} deviations; in {e.dtype}, {e.layout}, the layer's "
        f"error is {e.theirs:.2g} deviations, and xhat's {e.ours:.2g}.",
        {"layers": len(layers), "offset": e.offset, "error": e.theirs, "error_of_xhat": e.ours, "dtype": e.dtype,
         "layout": e.layout},
        "The layer's arithmetic subtracts large numbers that are nearly equal.",
        "Subtract the offset from the data, or use a layer that sums around the mean.",
        "model, changes = xt.convert(model)",
        proof,
    )  # fmt: skip


def _float16(measured: Measured) -> Iterator[Finding]:
    found = []
    for layer in measured.layers:
        if layer.tracks:
            largest = max(float(np.nanmax(np.abs(values), initial=0)) for values in layer.running)
            found += [(largest, layer)] if largest > at.LARGEST_FLOAT16 and np.isfinite(largest) else []
    if found:
        found.sort(key=lambda pair: -pair[0])
        layers = [x for _, x in found]
        yield Finding(
            "range-of-float16", "risk", _paths(layers),
            f"{listed(layers[0], layers)}: a running statistic is {found[0][0]:.3g}, and float16 ends at 65504.",
            {"layers": len(layers), "largest": found[0][0]},
            "model.half() makes it infinite, and the channel's output becomes 0 without an error.",
            "Keep the statistics in float32 when the model is cast.",
            "model, changes = xt.convert(model)    # then model.half()",
        )  # fmt: skip


def _padding(measured: Measured) -> Iterator[Finding]:
    layers = [x for x in measured.layers if measured.tap(x).padded > at.PADDED]
    if not layers:
        return
    proof = tried(measured, "padding-counted")
    tap = measured.tap(layers[0])
    if not proof and tap.dimensions != 3:
        return  # the last rows of many images are alike
    if not np.isfinite(tap.variance).any():
        return
    with np.errstate(all="ignore"):
        m, _, m2 = tap.unpadded
        ratio = float(np.nanmedian(tap.variance / (m2 / m)))
        shift = float(np.nanmax(np.abs(tap.pooled[1] - tap.unpadded[1]) / np.sqrt(m2 / m + layers[0].eps)))
    yield Finding(
        "padding-counted", "harmful" if proof else "risk", _paths(layers),
        f"{listed(layers[0], layers)}: {100 * tap.padded:.0f} % of the values are padding; with them the mean is off "
        f"by {shift:.2g} deviations, and the variance is {ratio:.2g} times that without.",
        {"layers": len(layers), "padded": tap.padded, "shift": shift, "variance_ratio": ratio},
        "Padding is counted as data, so that the statistics depend on how long the other samples of a batch are.",
        "Leave padding out of the statistics.",
        "y = layer(x, mask=mask)    # after xt.convert(model); mask: (N, 1, L), 0 where x is padding",
        proof,
    )  # fmt: skip
