"""Batches that are too small, or not alike."""

import math
from collections.abc import Iterator

import numpy as np

from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import Finding, Proof, Severity, Unjudged
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.rules.relevance import is_relevant, listed
from xhat.torch.doctor.signals import Signals

__all__ = ["judge"]


def judge(measured: Measured) -> Iterator[Finding | Unjudged]:
    """`batches-not-alike`, `batches-too-small` and `one-value-per-channel`."""
    if measured.single_values:
        yield _single_values(measured)
    if measured.count < 2:
        reason = "there was one batch, and both compare batches"
        yield from (Unjudged(cause, reason) for cause in ("batches-not-alike", "batches-too-small"))
        return
    not_alike = list(_not_alike(measured))
    yield from not_alike
    if not not_alike:
        yield from _too_small(measured)


def _better(measured: Measured) -> str:
    """Evaluation or the pooled moments: which is better."""
    gap = measured.gap("evaluation", "pooled")
    return "pooled" if gap.defined and gap.gain > 0 else "evaluation"


def _not_alike(measured: Measured) -> Iterator[Finding]:
    """Harmful is the pattern, the batch's statistics better than all fixed ones, with batches that are not alike.

    The pattern alone is a risk: a deep network that was trained on a few values per channel shows it too.
    """
    better = _better(measured)
    gap = measured.gap(better, "batch")
    pattern = measured.quantity == "loss" and is_relevant(measured, gap, better, "batch")
    called = _with_signals(measured)
    limit = unlike(measured.count) if pattern else max(unlike(measured.count), at.NOT_ALIKE)
    found = [pair for pair in called if pair[0].icc > limit]
    noisy = any(s.noise > at.NOISE for s, _ in called)
    if not found and (not pattern or noisy or _reused(measured)):
        return
    found = sorted(found or called, key=lambda pair: -np.nan_to_num(pair[0].icc))
    if not found:
        return
    (s, worst), differ = found[0], found[0][0].icc > limit
    harmful = pattern and differ
    severity: Severity = "harmful" if harmful else "risk"
    seen = f"the batches' means, or mean squares, vary {s.icc:.3g} times as much as those of shuffled batches"
    seen += (
        ""
        if differ
        else f"; but the {measured.quantity} is better by each batch's statistics than by fixed ones"
    )
    yield Finding(
        "batches-not-alike", severity, tuple(x.path for _, x in found[: at.LISTED]),
        f"{listed(worst, [x for _, x in found])}: {seen}.",
        {"icc": s.icc, "noise": s.noise, "layers": len(found)},
        "Each batch has its own mean and variance, and one pair of running statistics fits none of them.",
        "Shuffle the samples over the batches and train on, or keep statistics for each domain.",
        "loader = DataLoader(data, batch_size=N, shuffle=True)",
        Proof(measured.quantity, gap.before, gap.after) if pattern else None,
    )  # fmt: skip


def unlike(batches: int) -> float:
    """The icc that shuffled batches hardly reach: theirs is chi-square / (batches - 1), which few batches scatter more.

    chi-square_k / k is near (1 - 2 / 9k + z sqrt(2 / 9k))^3 at the quantile of z (Wilson and Hilferty, 1931).
    """
    part = 2 / (9 * max(batches - 1, 1))
    limit: float = (1 - part + at.SHUFFLED * math.sqrt(part)) ** 3
    return limit


def _too_small(measured: Measured) -> Iterator[Finding]:
    found = sorted((p for p in _with_signals(measured) if p[0].noise > at.NOISE), key=lambda p: -p[0].noise)
    if not found:
        return
    s, worst = found[0]
    better = _better(measured)
    with_loss = measured.quantity == "loss"
    gap = measured.gap("batch", better)
    # The noise is that of training mode: a model that was given in evaluation mode does not have it.
    harmful = with_loss and measured.was_training and is_relevant(measured, gap, "batch", better)
    # The weights are fitted to the batches' own statistics, which no fixed ones can replace.
    fitted = with_loss and is_relevant(measured, measured.gap(better, "batch"), better, "batch")
    size = _mean_size(measured)
    enough = math.ceil(size * (s.noise / at.NOISE_ENOUGH) ** 2)
    severity: Severity = "harmful" if harmful else "risk" if fitted else "note"
    yield Finding(
        "batches-too-small", severity, tuple(x.path for _, x in found[: at.LISTED]),
        f"{listed(worst, [x for _, x in found])}: the mean of a batch of {size:.3g} samples scatters by {s.noise:.2g} "
        f"deviations; batches of {enough} would scatter by {at.NOISE_ENOUGH}.",
        {"noise": s.noise, "batch_size": size, "enough": enough, "layers": len(found), "m": s.m},
        "In training mode, the layer normalizes by the batch's statistics, whose scatter is noise in the output"
        f"{', and the weights are fitted to it' if fitted else ''}.",
        f"Train with batches of {enough}, share the batch over processes, or freeze the statistics.",
        "model, _ = xt.convert_sync(model)    # on several processes; or: xt.freeze(xt.convert(model)[0])",
        Proof(measured.quantity, gap.before, gap.after) if harmful else None,
    )  # fmt: skip


def _reused(measured: Measured) -> bool:
    """Whether some layer is called more than once in a forward pass."""
    return any(len(measured.tap(x).by_call) > 1 for x in measured.layers)


def _with_signals(measured: Measured) -> list[tuple[Signals, Layer]]:
    """The layers that are called once a forward pass: the means of several calls differ for another reason."""
    return [
        (measured.signals(x), x)
        for x in measured.layers
        if not x.fixed and measured.tap(x).batches and len(measured.tap(x).by_call) == 1
    ]


def _mean_size(measured: Measured) -> float:
    """Samples per batch, as the layers get them (harmonic mean)."""
    sizes = [tap.batches / tap.inverse_sizes for tap in measured.taps["batch"] if tap.inverse_sizes]
    return float(np.median(sizes)) if sizes else float("nan")


def _single_values(measured: Measured) -> Finding:
    paths = measured.single_values
    return Finding(
        "one-value-per-channel", "risk", tuple(paths[: at.LISTED]),
        f"{paths[0]}: a batch has one value per channel, which has no variance; training fails on it.",
        {"layers": len(paths)},
        "The last batch of a loader has one sample if the number of samples is 1 more than a multiple of batch_size.",
        "Leave out the last batch, or choose another batch size.",
        "loader = DataLoader(data, batch_size=N, drop_last=True)",
    )  # fmt: skip
