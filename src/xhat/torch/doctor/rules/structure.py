"""What the structure of the model shows: modes, frozen layers, layers used twice, biases, weight decay, classes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from xhat import equations
from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import Finding, Proof, Severity, Unjudged
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.origins import DROPOUTS
from xhat.torch.doctor.rules.relevance import is_relevant, listed, tried
from xhat.torch.doctor.trials import is_off, is_stuck, original_class

__all__ = ["judge"]


def judge(measured: Measured) -> Iterator[Finding | Unjudged]:
    """Findings of all these kinds."""
    yield from _modes(measured)
    yield from _frozen(measured)
    yield from _reused(measured)
    yield from _biases(measured)
    yield from _decay(measured)
    yield from _replaced(measured)


def _paths(layers: list[Layer]) -> tuple[str, ...]:
    return tuple(x.path for x in layers[: at.LISTED])


def _modes(measured: Measured) -> Iterator[Finding | Unjudged]:
    yield from _left_in_training(measured)
    stuck = [x for x in measured.layers if is_stuck(measured, x)]
    without = [x for x in measured.layers if not x.tracks and measured.tap(x, "evaluation").calls]
    if stuck or without:
        layers = stuck or without
        proof = tried(measured, "train-mode-in-evaluation")
        why = "model.eval() leaves it in training mode" if stuck else "it has no running statistics"
        yield Finding(
            "train-mode-in-evaluation", "harmful" if proof else "risk", _paths(layers),
            f"{listed(layers[0], layers)}: in evaluation, it normalizes by the batch's statistics, because {why}.",
            {"layers": len(layers), "track_running_stats": bool(stuck)},
            "A sample's result depends on the other samples of its batch.",
            "Put the layer into evaluation mode, or give it running statistics.",
            "layer.eval()" if stuck else "layer.track_running_stats = True    # where the model is made; then train",
            proof,
        )  # fmt: skip
    if not measured.was_training:
        reason = "the model is in evaluation mode; diagnose it in training mode, or use xt.watch"
        yield from (Unjudged(cause, reason) for cause in ("eval-mode-in-training", "frozen-but-moving"))
        return
    held = [x for x in measured.layers if x.held and x.tracks]
    if held:
        off = [x for x in held if is_off(measured, x)]
        learns = any(_learns(x.module) for x in off)
        proof = tried(measured, "eval-mode-in-training")
        severity: Severity = "harmful" if proof else "risk" if off and learns else "note"
        yield Finding(
            "eval-mode-in-training", severity, _paths(off or held),
            f"{listed((off or held)[0], off or held)}: in evaluation mode while the model is in training mode; "
            f"the statistics of {len(off)} of {len(held)} layers differ from what the layers get.",
            {"layers": len(off or held), "off": len(off)},
            "The running statistics stand still while the weights before the layer move.",
            "Call model.train() after each evaluation, unless the layers are meant to be frozen.",
            "model.train()    # or, on purpose: xt.freeze(xt.convert(model)[0])",
            proof,
        )  # fmt: skip


def _left_in_training(measured: Measured) -> Iterator[Finding]:
    """Batch norms in training mode in a model that is in evaluation mode: mode D ran the model as it was given."""
    layers = [x for x in measured.layers if x.training and not x.fixed and measured.tap(x).batches]
    if measured.was_training or not layers:
        return
    gap = measured.gap("train", "evaluation")
    harmful = is_relevant(measured, gap, "train", "evaluation")
    yield Finding(
        "train-mode-in-evaluation", "harmful" if harmful else "risk", _paths(layers),
        f"{listed(layers[0], layers)}: in training mode, while the model is in evaluation mode.",
        {"layers": len(layers)},
        "A sample's result depends on the other samples of its batch, and each forward pass moves the statistics.",
        "Put the whole model into evaluation mode.",
        "model.eval()",
        Proof(measured.quantity, gap.before, gap.after) if harmful else None,
    )  # fmt: skip


def _learns(module: Any) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _frozen(measured: Measured) -> Iterator[Finding]:
    if not measured.was_training or not _learns(measured.model):
        return
    moving = [
        x
        for x in measured.layers
        if x.training and x.tracks and not x.fixed and x.momentum != 0
        and any(True for _ in x.module.parameters()) and not _learns(x.module)
    ]  # fmt: skip
    if moving:
        yield Finding(
            "frozen-but-moving", "risk", _paths(moving),
            f"{listed(moving[0], moving)}: no parameter requires a gradient, and each training step moves the running "
            "statistics.",
            {"layers": len(moving)},
            "requires_grad=False stops the optimizer; the statistics follow the layer's mode.",
            "Freeze the statistics too.",
            "xt.convert(model)\nxt.freeze(backbone)",
        )  # fmt: skip


def _reused(measured: Measured) -> Iterator[Finding]:
    found = []
    for layer in measured.layers:
        calls = measured.tap(layer).by_call
        if len(calls) > 1 and isinstance(layer.module, _BatchNorm):
            found.append((_spread_of_calls(layer, calls), layer))
    if not found:
        return
    found.sort(key=lambda pair: -pair[0])
    apart = [x for spread, x in found if spread > at.AGREES]
    layers = apart or [x for _, x in found]
    spread, worst = found[0]
    gap = measured.gap("pooled", "batch")
    harmful = bool(apart) and measured.quantity == "loss" and is_relevant(measured, gap, "pooled", "batch")
    yield Finding(
        "layer-used-more-than-once", "harmful" if harmful else "risk" if apart else "note", _paths(layers),
        f"{listed(worst, layers)}: {len(measured.tap(worst).by_call)} calls in a forward pass, whose inputs differ by "
        f"up to {spread:.2g} (deviations of the mean, or log ratio of variances).",
        {"layers": len(layers), "calls": len(measured.tap(worst).by_call), "spread": spread},
        "In training each call has its own statistics; in evaluation one average of them has to fit all calls.",
        "Give each call a layer of its own, or normalize all inputs in one call.",
        "self.bn_a, self.bn_b = nn.BatchNorm2d(C), nn.BatchNorm2d(C)",
        Proof(measured.quantity, gap.before, gap.after) if harmful else None,
    )  # fmt: skip


def _spread_of_calls(layer: Layer, calls: list[Any]) -> float:
    """The largest deviation of a call's moments from the first call's: of means in sigmas, or log variance ratio."""
    (m, mean, m2), *others = calls
    worst = 0.0
    with np.errstate(all="ignore"):
        var = equations.variance(m2, m) + layer.eps
        for n, other, other_m2 in others:
            ratio = np.abs(np.log((equations.variance(other_m2, n) + layer.eps) / var))
            shift = np.abs(other - mean) / np.sqrt(var)
            worst = max(
                worst, *(float(np.nanquantile(v, 0.9)) for v in (ratio, shift) if np.isfinite(v).any())
            )
    return worst


def _biases(measured: Measured) -> Iterator[Finding]:
    fed = [(x, measured.feeds[x.path]) for x in measured.layers if x.path in measured.feeds and not x.fixed]
    biased: list[tuple[Layer, str, Any]] = [
        (x, path, m)
        for x, (path, m) in fed
        if not isinstance(m, DROPOUTS) and getattr(m, "bias", None) is not None
    ]
    if not biased:
        return
    layers = [x for x, *_ in biased]
    _, path, module = biased[0]
    values = sum(len(m.bias) for _, _, m in biased)
    yield Finding(
        "bias-before-batch-norm", "note", _paths(layers),
        f"{listed(layers[0], layers)}: {path!r} adds a bias; {values} parameters do nothing.",
        {"layers": len(layers), "parameters": values, "before": path},
        "The batch norm subtracts the mean, and the bias with it.",
        f"Make {type(module).__name__} without a bias.",
        f"{type(module).__name__}(..., bias=False)",
    )  # fmt: skip


def _decay(measured: Measured) -> Iterator[Finding | Unjudged]:
    if measured.optimizer is None:
        yield Unjudged("decay-on-gamma", "no optimizer was given: diagnose(..., optimizer=optimizer)")
        return
    decays = {
        id(p): group["weight_decay"]
        for group in measured.optimizer.param_groups
        if group.get("weight_decay")
        for p in group["params"]
    }
    layers = [x for x in measured.layers if any(id(p) in decays for p in x.module.parameters(recurse=False))]
    if not layers:
        return
    decay = max(decays[id(p)] for x in layers for p in x.module.parameters(recurse=False) if id(p) in decays)
    yield Finding(
        "decay-on-gamma", "note", _paths(layers),
        f"{listed(layers[0], layers)}: weight_decay={decay:g} on weight and bias.",
        {"layers": len(layers), "weight_decay": float(decay)},
        "Decay pulls gamma to 0, which shrinks the layer's output; it does not regularize as it does for weights.",
        "Put the parameters of batch norms into a group without decay.",
        'optimizer = SGD([{"params": others}, {"params": norms, "weight_decay": 0}], lr=..., weight_decay=...)',
    )  # fmt: skip


def _replaced(measured: Measured) -> Iterator[Finding]:
    found = [(x, original_class(measured.model, x)) for x in measured.layers]
    layers = [x for x, made in found if made]
    if layers:
        made = next(made for _, made in found if made)
        proof = tried(measured, "class-replaced")
        yield Finding(
            "class-replaced", "harmful" if proof else "risk", _paths(layers),
            f"{listed(layers[0], layers)}: {type(layers[0].module).__name__}, and the model makes a {made.__name__}, "
            "which has a forward of its own.",
            {"layers": len(layers), "class": type(layers[0].module).__name__, "original": made.__name__},
            "A conversion (to SyncBatchNorm, for example) has replaced a subclass by a class without its forward.",
            "Convert with a function that leaves subclasses with a forward of their own.",
            "model, changes = xt.convert_sync(model)",
            proof,
        )  # fmt: skip
