"""Frozen layers: statistics that stop moving, parameters that stop learning, whatever .train() and .eval() say.

What a frozen layer computes must never live here: the layer's forward knows.
"""

from collections.abc import Iterator
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.errors import ArgumentError
from xhat.torch.layers import BatchNorm

__all__ = ["freeze", "unfreeze"]

M = TypeVar("M", bound=nn.Module)


def freeze(model: M, statistics: bool = True, affine: bool = True) -> M:
    """Freezes every batch norm in the model (or this one): neither .train() nor .eval() changes that; repr shows it.

        statistics    y = (x - running_mean) / sqrt(running_var + eps) in training too, and nothing moves them
        affine        weight and bias are constants: requires_grad is False, .grad is None

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


def _hold(layer: BatchNorm) -> None:
    """Makes constants of weight and bias, and notes which of them were learning."""
    layer.frozen_affine = True
    parameters = dict(layer.named_parameters(recurse=False))
    vars(layer)["learning_before"] = tuple(name for name, p in parameters.items() if p.requires_grad)
    for p in parameters.values():
        p.requires_grad = False  # the method would refuse a lazy layer's
        p.grad = None


def _let_go(layer: BatchNorm) -> None:
    layer.frozen_affine = False
    for name in vars(layer).pop("learning_before", ()):
        getattr(layer, name).requires_grad = True
