"""One layer: torch's batch norm becomes xhat's in place, and torch's again; and what timm's BatchNormAct2d becomes.

Where the layers of a model are, and which calls are fused, must never be decided here.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from xhat.errors import XhatError
from xhat.plan import check_options
from xhat.torch import nn as layers
from xhat.torch.convert.match import activation_of, is_identity

__all__ = [
    "XHAT_CLASS",
    "BatchNormAct2d",
    "convert_layer",
    "inexpressible_options",
    "reason_to_leave",
    "revert_layer",
]


class BatchNormAct2d(layers.BatchNorm2d):
    """What timm's layer of this name is converted to.

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
_TORCH_CLASS = {xhats: torchs for torchs, xhats in XHAT_CLASS.items()}

# The attributes that a layer of xhat has and torch's layer has not.
_ADDED = (*layers.DEFAULTS, "skipped", "torch_class", "frozen_statistics", "frozen_affine")


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
    xhats = XHAT_CLASS.get(type(layer), BatchNormAct2d)
    state = layers.DEFAULTS | ({"torch_class": type(layer)} if xhats is BatchNormAct2d else {})
    layer.__class__ = xhats
    for name, value in state.items():
        setattr(layer, name, value)
    layer.register_buffer("skipped", None, persistent=False)


def inexpressible_options(layer: layers.BatchNorm) -> Iterator[str]:
    """What this layer has that torch's layer can't express."""
    if type(layer) not in (*_TORCH_CLASS, BatchNormAct2d):
        yield f"the class {type(layer).__qualname__}"
    for name, default in layers.DEFAULTS.items():
        if getattr(layer, name) != default:
            yield f"{name}={getattr(layer, name)!r}"
    for what in ("statistics", "affine"):
        if getattr(layer, f"frozen_{what}"):
            yield f"frozen {what}"


def revert_layer(layer: Any) -> None:
    """Makes xhat's layer torch's again. The layer must have no `inexpressible_options`."""
    torchs: type[nn.Module] = (
        layer.torch_class if isinstance(layer, BatchNormAct2d) else _TORCH_CLASS[type(layer)]
    )
    for name in _ADDED:
        if name in vars(layer) or name in layer._buffers:
            delattr(layer, name)
    if layer.weight is not None and layer.weight.dtype.itemsize < 4 and layer.running_mean is not None:
        for value in (
            layer.running_mean,
            layer.running_var,
        ):  # torch refuses wider statistics than parameters
            value.data = value.data.to(layer.weight.dtype)
    layer.__class__ = torchs
