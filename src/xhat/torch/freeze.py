"""Frozen layers: running statistics that stay, parameters that are constants, whatever .train() and .eval() do.

What a frozen layer computes must never live here: that is part of the layer's forward.
"""

from collections.abc import Iterator
from typing import TypeVar, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from xhat.errors import ArgumentError
from xhat.torch.nn import BatchNorm

__all__ = ["freeze", "layers_of", "unfreeze"]

M = TypeVar("M", bound=nn.Module)


def freeze(model: M, statistics: bool = True, affine: bool = True) -> M:
    """Freeze the statistics and the parameters of every batch norm in a model.

    ``.train()`` and ``.eval()`` do not change that, and repr shows it::

        statistics    y = weight (x - running_mean) / sqrt(running_var + eps) + bias
                      in training too; the running statistics stay
        affine        weight and bias are constants: requires_grad is False and .grad is None,
                      also for the originals of parametrized ones

    Parameters
    ----------
    model : torch.nn.Module
        A model with batch norms of xhat's, or one of these layers. It is changed in place.
    statistics : bool, default True
        Whether to freeze the statistics. If False, they are left as they are.
    affine : bool, default True
        Whether to freeze weight and bias. If False, they are left as they are.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ArgumentError
        If the model has no batch norm of xhat's or has others as well, and if statistics are to be frozen and a layer
        has none. Then nothing has changed.

    See Also
    --------
    unfreeze : The other direction.
    fold_frozen : Make frozen layers part of the weights before them.

    Notes
    -----
    Without a ``.grad``, no optimizer changes a parameter, not even by weight decay. A parameter that several layers
    share becomes a constant for all of them.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.freeze(xt.BatchNorm1d(1))
    >>> y = layer.train()(torch.tensor([[1.0], [2.0], [6.0]]))
    >>> layer.running_mean, layer.weight.requires_grad
    (tensor([0.]), False)
    """
    layers = layers_of(model, "freeze")
    others = [path for path, m in _batch_norms(model) if not isinstance(m, BatchNorm)]
    if others:
        raise ArgumentError(
            f"freeze: {_listed(others)} would not be frozen: not xhat's. Call xhat.torch.convert(model) first, or "
            "freeze the parts of the model that have only xhat's layers."
        )
    without = [path for path, layer in layers if layer.running_mean is None or layer.running_var is None]
    if statistics and without:
        raise ArgumentError(
            f"freeze: {_listed(without)} has no running statistics (track_running_stats=False), so that there is "
            "nothing to freeze. Pass statistics=False."
        )
    for _, layer in layers:
        if statistics:
            layer.frozen_statistics = True
        if affine and not layer.frozen_affine:
            _freeze_parameters(layer)
    return model


def unfreeze(model: M, statistics: bool = True, affine: bool = True) -> M:
    """Undo `freeze` for every batch norm in a model.

    Parameters require gradients again if they did before.

    Parameters
    ----------
    model : torch.nn.Module
        A model with batch norms of xhat's, or one of these layers. It is changed in place.
    statistics : bool, default True
        Whether to unfreeze the statistics. If False, they are left as they are.
    affine : bool, default True
        Whether to unfreeze weight and bias. If False, they are left as they are.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ArgumentError
        If the model has no batch norm of xhat's.

    Examples
    --------
    >>> import xhat.torch as xt
    >>> layer = xt.unfreeze(xt.freeze(xt.BatchNorm1d(1)), statistics=False)
    >>> layer.frozen_statistics, layer.weight.requires_grad
    (True, True)
    """
    for _, layer in layers_of(model, "unfreeze"):
        if statistics:
            layer.frozen_statistics = False
        if affine and layer.frozen_affine:
            _unfreeze_parameters(layer)
    return model


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((path, m) for path, m in model.named_modules() if isinstance(m, _BatchNorm))


def layers_of(model: nn.Module, operation: str) -> list[tuple[str, BatchNorm]]:
    """The layers of xhat's in this model. Raises ArgumentError if there is none."""
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


def _parameters(layer: BatchNorm) -> Iterator[tuple[str, nn.Parameter]]:
    """The layer's parameters, without its children's. Of a parametrized one the originals, by their longer names."""
    yield from layer.named_parameters(recurse=False)
    if is_parametrized(layer):
        yield from cast(nn.Module, layer.parametrizations).named_parameters("parametrizations")


def _short_name(name: str) -> str:
    """ "weight" for weight and for parametrizations.weight.original."""
    return name.removeprefix("parametrizations.").split(".")[0]


def _freeze_parameters(layer: BatchNorm) -> None:
    """Makes the parameters constants, and notes which of them required a gradient."""
    layer.frozen_affine = True
    vars(layer)["learning_before"] = {name: p.requires_grad for name, p in _parameters(layer)}
    for _, p in _parameters(layer):
        p.requires_grad = False  # requires_grad_() would refuse a lazy layer's parameter
        p.grad = None


def _unfreeze_parameters(layer: BatchNorm) -> None:
    """Restores requires_grad. An original that was parametrized since then takes that of its weight or bias."""
    layer.frozen_affine = False
    before = vars(layer).pop("learning_before", {})
    learned = {_short_name(name) for name, required in before.items() if required}
    for name, p in _parameters(layer):
        if before.get(name, _short_name(name) in learned):  # else it stays: another layer may share it
            p.requires_grad = True
