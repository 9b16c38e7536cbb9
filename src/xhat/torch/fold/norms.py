"""One batch norm as fold takes it: whether it is an affine map of its input, which one, and what remains without it.

Which layers are beside it in a model must never be decided here.
"""

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from xhat import equations
from xhat.plan import check_options
from xhat.torch import composed
from xhat.torch.convert.layers import BatchNormAct2d, reason_to_leave
from xhat.torch.internals import hooked
from xhat.torch.nn import BatchNorm

__all__ = ["Affine", "Remainder", "affine", "has_fixed_statistics", "is_norm", "reason_against", "remainder"]


class Affine(NamedTuple):
    """y = scale x + shift for each channel (C,), in float64."""

    scale: Tensor
    shift: Tensor


def affine(norm: Any) -> Affine:
    """scale = gamma rstd and shift = beta - mu gamma rstd, of running statistics, in float64; gradients pass."""
    mu, var = norm.running_mean.double(), norm.running_var.double()
    gamma = torch.ones_like(mu) if norm.weight is None else norm.weight.double()
    beta = torch.zeros_like(mu) if norm.bias is None else norm.bias.double()
    if getattr(norm, "frozen_affine", False):
        gamma, beta = gamma.detach(), beta.detach()
    rstd = equations.reciprocal_std(var, float(norm.eps), torch.sqrt)
    return Affine(gamma * rstd, equations.normalize(0, mu, rstd, gamma, beta))


def is_norm(module: nn.Module) -> bool:
    """Whether this is a batch norm: torch's, xhat's, or a FrozenBatchNorm2d (torchvision's, detectron2's)."""
    return isinstance(module, _BatchNorm) or _is_frozen_copy(module)


def _is_frozen_copy(module: nn.Module) -> bool:
    """Whether this is a FrozenBatchNorm2d, which has four buffers and eps; by name: its package need not be there."""
    names = {"weight", "bias", "running_mean", "running_var"}
    return (
        type(module).__name__ == "FrozenBatchNorm2d"
        and names <= set(module._buffers)
        and hasattr(module, "eps")
    )


def has_fixed_statistics(norm: Any) -> bool:
    """Whether this layer normalizes by its running statistics as it is now."""
    if _is_frozen_copy(norm):
        return True
    known = norm.running_mean is not None and norm.running_var is not None
    return known and (not norm.training or getattr(norm, "frozen_statistics", False))


def reason_against(norm: Any) -> str | None:
    """Why this layer is no fixed affine map of finite numbers; None if it is."""
    if isinstance(norm, torch.jit.ScriptModule):
        return "it is compiled by torch.jit"
    if hooked(norm):
        return "it has hooks, or a forward of its own"
    why = _reason_of_class(norm)
    if why is not None:
        return why
    if norm.running_mean is None or norm.running_var is None:
        return "it has no running statistics"
    if not has_fixed_statistics(norm):
        return (
            "it is in training mode, where it normalizes by each batch's statistics: call model.eval() first"
        )
    with torch.no_grad():
        scale, shift = affine(norm)
    if not bool(scale.isfinite().all() and shift.isfinite().all()):
        return "its parameters and statistics give NaN or infinity"
    return None


def _reason_of_class(norm: nn.Module) -> str | None:
    if _is_frozen_copy(norm):
        return None
    if is_parametrized(norm):
        return "its parameters are parametrized"
    if isinstance(norm, BatchNorm):
        known = type(norm).forward in (BatchNorm.forward, BatchNormAct2d.forward)
        return None if known else "its class is a subclass of xhat's with a forward of its own"
    if isinstance(norm, nn.SyncBatchNorm):
        return None if type(norm) is nn.SyncBatchNorm else "its class is a subclass of torch's"
    return reason_to_leave(norm)


class Remainder(nn.Module):
    """What remains of a layer of xhat's whose affine map is folded, where it is called with more than its input.

    y = act(input [+ residual]), with the arguments of `xhat.torch.BatchNorm2d`. The mask weighs nothing in evaluation.
    """

    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.activation = activation

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: Any = None,
    ) -> Tensor:
        """y, in input's dtype."""
        options = check_options("batch_norm", 1.0, 0, self.activation if activation is None else activation)
        return composed.activate(input if residual is None else input + residual, options)

    def extra_repr(self) -> str:
        """The activation."""
        return f"activation={self.activation!r}"


def remainder(norm: Any, with_options: bool = False) -> nn.Module:
    """The module in place of a folded layer: Identity, its activation, timm's drop and act, or a `Remainder`.

    with_options: whether the layer is called with more than its input, such as a residual.
    """
    if hasattr(norm, "drop") and hasattr(norm, "act"):  # timm's, or what it was converted to: both paths stay
        return nn.Sequential(OrderedDict(drop=norm.drop, act=norm.act)).train(norm.training)
    activation = getattr(norm, "activation", None)
    if with_options and isinstance(norm, BatchNorm):
        return Remainder(activation).train(norm.training)
    match activation:
        case None:
            made: nn.Module = nn.Identity()
        case "relu":
            made = nn.ReLU()
        case "silu":
            made = nn.SiLU()
        case (_, slope):
            made = nn.LeakyReLU(slope)
    return made.train(norm.training)
