"""One layer: torch's batch norm becomes xhat's in place, and torch's again; and what timm's BatchNormAct2d becomes.

Where the layers of a model are, and which calls are fused, must never be decided here.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from xhat.errors import XhatError
from xhat.plan import check_options
from xhat.torch import nn as layers
from xhat.torch.convert.generated import reduce_generated
from xhat.torch.convert.match import activation_of, is_identity
from xhat.torch.sync.layer import SyncBatchNorm

__all__ = [
    "XHAT_CLASS",
    "BatchNormAct2d",
    "act_class",
    "class_name",
    "convert_layer",
    "inexpressible_options",
    "reason_to_leave",
    "revert_layer",
    "torch_class_of",
]


class BatchNormAct2d(layers.BatchNorm2d):
    """What timm's layer of this name is converted to: a subclass of this class and of timm's, so that timm knows it.

    y = act(drop(bn(x) [+ residual])), where drop and act are child modules. The activation is part of the kernel call
    if drop is Identity and act is ReLU, LeakyReLU, SiLU or Identity.
    """

    drop: nn.Module
    act: nn.Module
    torch_class: type[nn.BatchNorm2d]

    @property
    def fused_activation(self) -> Any:
        """The activation that is part of the kernel call, or None."""
        return activation_of(self.act) if is_identity(self.drop) else None

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: Any = None,
    ) -> Tensor:
        """y. An `activation` that is given replaces drop and act in this call."""
        if isinstance(input, fx.Proxy) and not any(inexpressible_options(self)):
            traced: Any = self.torch_class.forward(self, input)
            return traced
        activation = activation or self.fused_activation
        y = super().forward(input, residual, mask, activation=activation)
        return y if activation is not None else self.act(self.drop(y))


XHAT_CLASS: dict[type[nn.Module], type[layers.BatchNorm]] = {
    nn.BatchNorm1d: layers.BatchNorm1d,
    nn.BatchNorm2d: layers.BatchNorm2d,
    nn.BatchNorm3d: layers.BatchNorm3d,
    nn.LazyBatchNorm1d: layers.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: layers.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: layers.LazyBatchNorm3d,
}
_TORCH_CLASS = {xhats: torchs for torchs, xhats in XHAT_CLASS.items()} | {SyncBatchNorm: nn.SyncBatchNorm}
_TORCH_FORWARD = _BatchNorm.forward

# The attributes that a layer of xhat has and torch's layer has not.
_ADDED = (
    *layers.DEFAULTS,
    "skipped",
    "torch_class",
    "frozen_statistics",
    "frozen_affine",
    "_group",
    "_path",
    "_eps",
)


@cache
def act_class(torch_class: type[nn.BatchNorm2d]) -> type[BatchNormAct2d]:
    """The subclass of BatchNormAct2d and of this class of timm's."""
    members = {"__module__": BatchNormAct2d.__module__, "__reduce_ex__": _reduce, "torch_class": torch_class}
    return type(BatchNormAct2d.__name__, (BatchNormAct2d, torch_class), members)


def _reduce(layer: Any, protocol: Any) -> Any:
    """`__reduce_ex__` of these subclasses."""
    reduced = super(BatchNormAct2d, layer).__reduce_ex__(max(2, protocol))
    return reduce_generated(reduced, act_class, type(layer).torch_class)


def reason_to_leave(m: nn.Module) -> str | None:
    """Why this batch norm can't be converted; None if it can."""
    if isinstance(m, layers.BatchNorm):
        return "it is xhat's already"
    if isinstance(m, nn.SyncBatchNorm):
        return "it exchanges statistics between processes"
    if is_parametrized(m):
        return "its parameters are parametrized"
    if "forward" in vars(m):
        return "its forward was replaced on the instance"
    if type(m) in XHAT_CLASS and type(m).forward is not _TORCH_FORWARD:
        return "the forward of torch's class was replaced"
    if type(m) not in XHAT_CLASS and not _is_timms(m):
        own = type(m).forward is not nn.BatchNorm2d.forward
        return f"its class is a subclass of torch's with {'a forward' if own else 'a meaning'} of its own"
    taken = [name for name in _ADDED if hasattr(m, name)]
    if taken:
        return f"it has an attribute {taken[0]!r} already"
    try:
        check_options("batch_norm", float(vars(m)["eps"]), 0, None)
    except XhatError as error:
        return str(error).rstrip(".")
    return None


def _is_timms(m: nn.Module) -> bool:
    """Whether this is timm's BatchNormAct2d, recognized by name and children, so that timm need not be installed."""
    children = (getattr(m, "drop", None), getattr(m, "act", None))
    return type(m).__name__ == "BatchNormAct2d" and all(isinstance(child, nn.Module) for child in children)


def convert_layer(layer: nn.Module) -> None:
    """Makes torch's layer one of xhat's. The layer must have no `reason_to_leave`."""
    for name in ("running_mean", "running_var"):
        value = getattr(layer, name)
        if value is not None and not nn.parameter.is_lazy(value) and value.dtype.itemsize < 4:
            value.data = value.data.float()  # the tensor object stays: others may hold a reference to it
    kind: Any = type(layer)
    layer.__class__ = XHAT_CLASS.get(kind) or act_class(kind)
    layer.eps = vars(layer)["eps"]
    for name, value in layers.DEFAULTS.items():
        setattr(layer, name, value)


def torch_class_of(layer: layers.BatchNorm) -> type[nn.Module] | None:
    """What this layer was before it was converted, or would have been; None for a subclass of xhat's."""
    if isinstance(layer, BatchNormAct2d):
        return layer.torch_class
    known: Any = vars(layer).get("torch_class", _TORCH_CLASS.get(type(layer)))
    became: type[nn.Module] | None = getattr(known, "cls_to_become", None)
    found: type[nn.Module] | None = became if became and not isinstance(layer, LazyModuleMixin) else known
    return found


def inexpressible_options(layer: layers.BatchNorm) -> Iterator[str]:
    """What this layer has that torch's layer can't express."""
    if torch_class_of(layer) is None:
        yield f"the class {type(layer).__qualname__}"
    for name, default in layers.DEFAULTS.items():
        if getattr(layer, name) != default:
            yield f"{name}={getattr(layer, name)!r}"
    for what in ("statistics", "affine"):
        if getattr(layer, f"frozen_{what}"):
            yield f"frozen {what}"


def revert_layer(layer: Any) -> None:
    """Makes xhat's layer torch's again. The layer must have no `inexpressible_options`."""
    torchs = torch_class_of(layer)
    process_group = layer.process_group if torchs is nn.SyncBatchNorm else None
    for name in _ADDED:
        if name in vars(layer) or name in layer._buffers:
            delattr(layer, name)
    if layer.weight is not None and layer.weight.dtype.itemsize < 4 and layer.running_mean is not None:
        # torch refuses wider statistics than parameters.
        for value in (layer.running_mean, layer.running_var):
            value.data = value.data.to(layer.weight.dtype)
    layer.__class__ = torchs
    if torchs is nn.SyncBatchNorm:
        layer.process_group = process_group


def class_name(layer: nn.Module) -> str:
    """The name by which users import the layer's class."""
    kind = type(layer)
    if isinstance(layer, torch.jit.ScriptModule):
        return f"torch.jit.ScriptModule of {layer.original_name}"
    module = kind.__module__
    if module == _BatchNorm.__module__:
        module = "torch.nn"
    elif issubclass(kind, BatchNormAct2d):
        module = "xhat.torch.convert"
    elif module.startswith("xhat.torch."):
        module = "xhat.torch"
    return f"{module}.{kind.__qualname__}"
