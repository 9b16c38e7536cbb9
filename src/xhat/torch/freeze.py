"""Frozen layers: statistics that stop moving, parameters that stop learning, whatever .train() and .eval() say.

What a frozen layer computes must never live here: the layer's forward knows.
"""

from collections.abc import Iterator
from typing import TypeVar, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from xhat.errors import ArgumentError
from xhat.torch.nn import BatchNorm

__all__ = ["freeze", "unfreeze"]

M = TypeVar("M", bound=nn.Module)


def freeze(model: M, statistics: bool = True, affine: bool = True) -> M:
    """Freezes every batch norm in the model (or this one): neither .train() nor .eval() changes that; repr shows it.

        statistics    y = (x - running_mean) / sqrt(running_var + eps) in training too, and nothing moves them
        affine        weight and bias are constants: requires_grad is False, .grad is None, and so for what they are
                      made of where they are parametrized

    A part that is False stays as it is. Without a .grad no optimizer touches a parameter, not even to decay it.
    A parameter that layers share becomes a constant for all of them. Returns the model. Raises ArgumentError, and
    changes nothing, if the model has no layer of xhat's or has others beside them, and if the statistics of a layer
    that has none are to be frozen.
    """
    layers = _layers(model, "freeze")
    theirs = [path for path, m in _batch_norms(model) if not isinstance(m, BatchNorm)]
    if theirs:
        raise ArgumentError(
            f"freeze: {_listed(theirs)} would not be frozen: not xhat's. Call xhat.torch.convert(model) first, or "
            "freeze the parts of the model that have only xhat's layers."
        )
    none = [path for path, layer in layers if layer.running_mean is None or layer.running_var is None]
    if statistics and none:
        raise ArgumentError(
            f"freeze: {_listed(none)} has no running statistics (track_running_stats=False), so that there is nothing "
            "to freeze. Pass statistics=False."
        )
    for _, layer in layers:
        if statistics:
            layer.frozen_statistics = True
        if affine and not layer.frozen_affine:
            _hold(layer)
    return model


def unfreeze(model: M, statistics: bool = True, affine: bool = True) -> M:
    """Takes back what `freeze` did to every batch norm in the model; parameters require gradients again if they did.

    A part that is False stays as it is. Returns the model. Raises ArgumentError if it has no layer of xhat's.
    """
    for _, layer in _layers(model, "unfreeze"):
        if statistics:
            layer.frozen_statistics = False
        if affine and layer.frozen_affine:
            _let_go(layer)
    return model


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, _BatchNorm))


def _layers(model: nn.Module, operation: str) -> list[tuple[str, BatchNorm]]:
    """The layers of ours in this model."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{operation}: model is {type(model).__name__}, expected a torch.nn.Module.")
    found = [(path, m) for path, m in _batch_norms(model) if isinstance(m, BatchNorm)]
    if not found:
        raise ArgumentError(
            f"{operation}: {type(model).__name__} has no batch norm of xhat's. Call xhat.torch.convert(model) first."
        )
    return found


def _listed(paths: list[str]) -> str:
    shown = ", ".join(repr(path) if path else "the layer" for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _own(layer: BatchNorm) -> Iterator[tuple[str, nn.Parameter]]:
    """The layer's parameters, without those of its children, and what they are made of where they are parametrized."""
    yield from layer.named_parameters(recurse=False)
    if is_parametrized(layer):
        yield from cast(nn.Module, layer.parametrizations).named_parameters("parametrizations")


def _made(name: str) -> str:
    """What a parameter of `_own` is, or makes: weight of parametrizations.weight.original."""
    return name.removeprefix("parametrizations.").split(".")[0]


def _hold(layer: BatchNorm) -> None:
    """Makes constants of weight and bias, and notes which of them were learning."""
    layer.frozen_affine = True
    vars(layer)["learning_before"] = {name: p.requires_grad for name, p in _own(layer)}
    for _, p in _own(layer):
        p.requires_grad = False  # the method would refuse a lazy layer's
        p.grad = None


def _let_go(layer: BatchNorm) -> None:
    """Parameters learn as they did; what was not there, being parametrized since, learns if what it makes did."""
    layer.frozen_affine = False
    before = vars(layer).pop("learning_before", {})
    learning = {_made(name) for name, learned in before.items() if learned}
    for name, p in _own(layer):
        if before.get(name, _made(name) in learning):  # who shares it may have noted it as frozen
            p.requires_grad = True
