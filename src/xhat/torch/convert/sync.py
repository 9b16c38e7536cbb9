"""Whole models: every batch norm becomes a `SyncBatchNorm`, in place. What that layer computes must never live here."""

from functools import cache
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from xhat.errors import ArgumentError
from xhat.torch.convert.generated import reduce_generated
from xhat.torch.convert.layers import (
    XHAT_CLASS,
    BatchNormAct2d,
    act_class,
    convert_layer,
    reason_to_leave,
    torch_class_of,
)
from xhat.torch.nn import BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d
from xhat.torch.sync.layer import SyncBatchNorm

__all__ = ["convert_sync"]

M = TypeVar("M", bound=nn.Module)


def convert_sync(model: M, process_group: Any = None) -> M:
    """Turn every batch norm in a model, torch's or xhat's, into a `SyncBatchNorm`.

    Parameters
    ----------
    model : torch.nn.Module
        Any model. It is changed in place.
    process_group : torch.distributed.ProcessGroup, optional
        The ranks that share a batch; by default all. A SyncBatchNorm, torch's or xhat's, keeps its process group if
        none is given.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ArgumentError
        If ``model`` is not a module, or if there is a batch norm that can't be converted, with the reason. Then nothing
        has changed.

    See Also
    --------
    revert : Turn the layers back into torch's, of the classes that they had.

    Notes
    -----
    Layers change their class in place. Parameters, buffers, hooks, training mode and options stay, and so do members
    that a subclass adds and calls that `convert` has fused. A lazy layer becomes a `SyncBatchNorm` with its first
    input.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    >>> model = xt.convert_sync(model)
    >>> type(model[1])
    <class 'xhat.torch.sync.layer.SyncBatchNorm'>
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"convert_sync: model is {type(model).__name__}, expected a torch.nn.Module.")
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, _BatchNorm)]
    refused = [f"{path or '(the model)'}: {why}" for path, m in found if (why := _reason_to_refuse(m))]
    if refused:
        raise ArgumentError(
            f"convert_sync: a batch norm can't be converted ({'; '.join(refused)}). Nothing was changed. Convert the "
            "parts of the model that have none such."
        )
    for _, layer in found:
        _convert(layer, process_group)
    return model


def _reason_to_refuse(m: nn.Module) -> str | None:
    if isinstance(m, BatchNorm) or (_has_torchs_forward(m) and not is_parametrized(m)):
        return None
    return reason_to_leave(m)


def _has_torchs_forward(m: nn.Module) -> bool:
    """Whether this layer's forward is torch's, whatever members its class adds."""
    return type(m).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward) and "forward" not in vars(m)


def _convert(layer: Any, process_group: Any) -> None:
    kind: Any = type(layer)
    torch_class = torch_class_of(layer) if isinstance(layer, BatchNorm) else kind
    if not isinstance(layer, BatchNorm):
        previous = vars(layer).pop("process_group", None)
        process_group = process_group or previous
        is_subclass = _has_torchs_forward(layer) and kind not in XHAT_CLASS and kind is not nn.SyncBatchNorm
        if is_subclass or kind is nn.SyncBatchNorm:
            layer.__class__ = nn.BatchNorm2d
        convert_layer(layer)
        kind = kind if is_subclass else type(layer)
    if not isinstance(layer, SyncBatchNorm):
        layer.__class__ = _sync_class(kind)
        if torch_class is not None and not isinstance(layer, BatchNormAct2d):
            layer.torch_class = torch_class
    if process_group is not None:
        layer.process_group = process_group


@cache
def _sync_class(kind: type[nn.Module]) -> type[SyncBatchNorm]:
    """SyncBatchNorm, or a generated subclass of it and `kind` if that adds members."""
    if kind in (BatchNorm, BatchNorm1d, BatchNorm2d, BatchNorm3d):
        return SyncBatchNorm
    members = {"__module__": kind.__module__, "__reduce_ex__": _reduce}
    if issubclass(kind, LazyModuleMixin):
        members["cls_to_become"] = SyncBatchNorm
    # What a layer does with a batch of its own (renorm), it does with that of all ranks: its super() is SyncBatchNorm.
    own = issubclass(kind, BatchNorm) and kind._normalized is not BatchNorm._normalized
    bases: Any = (kind, SyncBatchNorm) if own else (SyncBatchNorm, kind)
    return type(f"Sync{kind.__name__}", bases, members)


def _reduce(layer: Any, protocol: Any) -> Any:
    """`__reduce_ex__` of the generated subclasses."""
    if isinstance(layer, BatchNormAct2d):  # the class below is generated too
        reduced = super(BatchNorm, layer).__reduce_ex__(max(2, protocol))
        torch_class: Any = layer.torch_class
        return reduce_generated(reduced, _sync_act_class, torch_class)
    reduced = super(SyncBatchNorm, layer).__reduce_ex__(max(2, protocol))
    kind = next(base for base in type(layer).__bases__ if base is not SyncBatchNorm)
    return reduce_generated(reduced, _sync_class, kind)


def _sync_act_class(torch_class: Any) -> type[SyncBatchNorm]:
    """The class for many processes of a layer that was of this class of timm's."""
    kind: Any = act_class(torch_class)
    found: type[SyncBatchNorm] = _sync_class(kind)
    return found
