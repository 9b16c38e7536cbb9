"""Remedies other than new statistics, tried on a copy: each is one pass over the batches in evaluation.

Whether a remedy was worth it must never be decided here.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.exactness import ours
from xhat.torch.doctor.graph import GraphNorm, constants_changed, is_initial
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measure import Runner, replayed
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.rules.relevance import is_relevant
from xhat.torch.doctor.signals import off

__all__ = ["original_class", "try_remedies"]

Again = Callable[[str], Iterable[Any]]


def try_remedies(runner: Runner, again: Again) -> None:
    """Fills `trials` of the measurements: by name, the layers and the scores with the remedy."""
    measured = runner.measured
    lost = [x for x in measured.layers if loses_digits(measured, x)]
    if lost:
        _patched(runner, again, "digits-lost", lost, "forward", _our_forward)
    padded = [x for x in measured.layers if x.tracks and measured.tap(x).padded > at.PADDED]
    if padded:
        scores = replayed(runner, again("without padding"), padded, lambda tap: tap.unpadded)
        measured.trials["padding-counted"] = padded, scores
    without = [x for x in measured.layers if not x.tracks and measured.tap(x).batches]
    if stuck := [x for x in measured.layers if is_stuck(measured, x)]:
        _released(runner, again, stuck)
    elif without:
        _with_statistics(runner, again, without)
    held = [x for x in measured.layers if x.held and x.tracks and is_off(measured, x)]
    if held:
        scores = replayed(runner, again("layers in evaluation mode"), held, lambda tap: tap.pooled)
        measured.trials["eval-mode-in-training"] = held, scores
    replaced = [x for x in measured.layers if original_class(measured.model, x)]
    if replaced:
        _as_made(runner, again, replaced)
    _graph(runner, again)
    gap = measured.gap("evaluation", "pooled")
    if is_relevant(measured, gap, "evaluation", "pooled"):
        small = [x for x in measured.layers if x.tracks and _near_eps(x)]
        for eps in at.COMMON_EPS:
            others = [x for x in small if x.eps != eps]
            if others:
                _patched(runner, again, f"eps={eps:g}", others, "eps", partial(_constant, eps))


def is_stuck(measured: Measured, layer: Layer) -> bool:
    """Whether the layer is in training mode after model.eval()."""
    return layer.tracks and not layer.fixed and measured.tap(layer, "evaluation").in_training


def _released(runner: Runner, again: Again, layers: list[Layer]) -> None:
    """One pass with these layers in evaluation mode, which model.eval() has left in training mode."""
    before = runner.evaluation
    try:
        runner.evaluation = before | {layer.module: False for layer in layers}
        scores = replayed(runner, again("layers in training mode"), [], lambda tap: tap.pooled)
        runner.measured.trials["train-mode-in-evaluation"] = layers, scores
    finally:
        runner.evaluation = before


def _with_statistics(runner: Runner, again: Again, layers: list[Layer]) -> None:
    """One pass in which layers without running statistics have the pooled moments."""
    measured = runner.measured
    modules = [x.module for x in layers]
    try:
        for layer, module in zip(layers, modules, strict=True):
            tap = measured.tap(layer)
            for name, value in (("running_mean", tap.pooled[1]), ("running_var", tap.variance)):
                vars(module)[name] = torch.from_numpy(value).to(next(measured.model.parameters()))
        scores = replayed(runner, again("running statistics"), [], lambda tap: tap.pooled)
        measured.trials["train-mode-in-evaluation"] = layers, scores
    finally:
        for module in modules:
            for name in ("running_mean", "running_var"):
                vars(module).pop(name, None)


def _graph(runner: Runner, again: Again) -> None:
    """An exported graph with its batch norms in evaluation, and with other eps."""
    measured = runner.measured
    model, norms = measured.model, measured.graph
    training = [x for x in norms if x.training and x.places[0] is not None]
    changes: list[tuple[str, list[GraphNorm], int, Any]] = []
    changes += [("exported-in-train-mode", training, 0, False)] if training else []
    initial = [x for x in norms if not x.training and x.places[0] is not None and is_initial(model, x)]
    changes += [("statistics-never-updated", initial, 0, True)] if initial else []
    changes += [(f"graph eps={eps:g}", [x for x in norms if x.eps != eps], 2, eps) for eps in at.COMMON_EPS]
    for name, changed, which, value in changes:
        if changed:
            with constants_changed(model, changed, which, value):
                measured.trials[name] = [], replayed(runner, again(name), [], lambda tap: tap.pooled)


def _patched(
    runner: Runner,
    again: Again,
    name: str,
    layers: list[Layer],
    attribute: str,
    value: Callable[[Layer], Any],
) -> None:
    """One pass in evaluation with another attribute on these layers."""
    before = [(x.module, vars(x.module).get(attribute, _NONE)) for x in layers]
    try:
        for layer in layers:
            vars(layer.module)[attribute] = value(layer)
        runner.measured.trials[name] = layers, replayed(runner, again(name), [], lambda tap: tap.pooled)
    finally:
        for module, old in before:
            vars(module).pop(attribute, None)
            if old is not _NONE:
                vars(module)[attribute] = old


_NONE = object()


def _constant(value: Any, layer: Layer) -> Any:
    return value


def loses_digits(measured: Measured, layer: Layer) -> bool:
    """Whether the layer's result is far from exact, and ours is not, in evaluation or by the batch."""
    errors = (measured.tap(layer, mode).errors for mode in ("evaluation", "batch"))
    return any(e and e.theirs > at.DIGITS_ERROR and e.theirs > at.DIGITS_RATIO * e.ours for e in errors)


def _our_forward(layer: Layer) -> Any:
    return lambda input: ours(layer.module, input, False)


def is_off(measured: Measured, layer: Layer) -> bool:
    """Whether the running statistics differ from the moments of what the layer gets."""
    return off(layer, measured.tap(layer)) > at.AGREES


def _near_eps(layer: Layer) -> bool:
    """Whether eps matters: many channels have a variance that is not far above it."""
    _, var = layer.running
    return bool(np.mean(var < 100 * max(layer.eps, min(at.COMMON_EPS))) > at.EPS_SHARE)


# --------------------------------------------------------------------------------------------- classes that were lost


def original_class(model: nn.Module, layer: Layer) -> type[nn.Module] | None:
    """The class with a forward of its own from which the parent's __init__ makes this layer, if that is not its class.

    The source of __init__ says `self.name = Class(...)`; a conversion that replaces layers by name leaves it as it is.
    """
    parent_path, _, name = layer.path.rpartition(".")
    if not name:
        return None
    parent = type(model.get_submodule(parent_path))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(parent.__init__)))
    except (OSError, TypeError, SyntaxError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            targets = [ast.unparse(target) for target in node.targets]
            made = _resolved(ast.unparse(node.value.func), parent)
            if f"self.{name}" in targets and _has_own_forward(made) and not isinstance(layer.module, made):
                found: type[nn.Module] = made
                return found
    return None


def _resolved(name: str, parent: Any) -> Any:
    """What this dotted name means in the module of the parent's __init__; None where it is a local name."""
    first, *rest = name.split(".")
    found = getattr(parent.__init__, "__globals__", {}).get(first)
    for part in rest:
        found = getattr(found, part, None)
    return found


def _has_own_forward(made: Any) -> bool:
    known = isinstance(made, type) and issubclass(made, _BatchNorm)
    return known and made.forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def _as_made(runner: Runner, again: Again, layers: list[Layer]) -> None:
    """One pass in evaluation with the layers as instances of the class that the model makes."""
    modules = [x.module for x in layers]
    before = [type(m) for m in modules]
    try:
        for layer in layers:
            layer.module.__class__ = original_class(runner.measured.model, layer)
        scores = replayed(runner, again("the original class"), [], lambda tap: tap.pooled)
        runner.measured.trials["class-replaced"] = layers, scores
    except Exception:  # its forward may need attributes that are gone
        if runner.measured.ranks > 1:
            raise
    finally:
        for module, kind in zip(modules, before, strict=True):
            module.__class__ = kind
