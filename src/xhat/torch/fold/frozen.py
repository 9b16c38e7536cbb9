"""Frozen batch norms as part of the weights of the layers before them, made anew in each forward pass.

Which layers these are is in `sites`, and the formula in `weights`: neither must ever live here.
"""

from functools import cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from xhat.torch.convert.generated import reduce_generated
from xhat.torch.fold.convolution import output_padding, scaled_convolution, takes
from xhat.torch.fold.norms import affine, has_fixed_statistics, remainder
from xhat.torch.fold.sites import Site
from xhat.torch.fold.weights import Weights, map_after, rounded
from xhat.torch.internals import eager

__all__ = ["FoldedNorm", "FoldingLayer", "make_frozen", "reason_to_leave", "unfold_frozen"]

M = TypeVar("M", bound=nn.Module)
_TRANSPOSED: dict[int, Any] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_FORWARDS: dict[Any, Any] = {
    kind: kind.forward
    for kind in (
        *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
        *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    )
}


class _Generated(nn.Module):
    """A layer whose class was changed. `original` is the class that it had; it is pickled by that and the mixin."""

    original: type[nn.Module]

    def extra_repr(self) -> str:
        """The original class's, and that the batch norm is folded."""
        return f"{super().extra_repr()}, folded"

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(2, protocol))
        kind = type(self)
        return reduce_generated(reduced, _class_of, (kind.__bases__[0], kind.original))


class FoldingLayer(_Generated):
    """Mixin of convolutions and linear layers: y = (scale weight) x + scale bias + shift, with a frozen batch norm's.

    `norm`: the batch norm, in a tuple, so that it is no child of this layer.
    """

    norm: tuple[nn.Module]

    def forward(self, input: Tensor, *args: Any) -> Tensor:
        """y; the layer's own where the batch norm is not frozen now."""
        layer: Any = self
        if not _is_folded(self.norm[0], input, layer):
            plain: Tensor = super().forward(input, *args)
            return plain
        f = affine(self.norm[0])
        bias = f.scale.new_zeros(len(f.scale)) if layer.bias is None else layer.bias
        cast = torch.is_autocast_enabled(input.device.type)
        if eager() and not cast and takes(layer) and torch.is_grad_enabled():
            return scaled_convolution(layer, input, args, f, bias)
        weights = rounded(map_after(layer, Weights(layer.weight, bias), f), layer.weight.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(input, *weights)
        if not isinstance(layer, _ConvTransposeNd):
            found: Tensor = layer._conv_forward(input, *weights)
            return found
        padding = output_padding(layer, input, args)
        k, more = len(layer.kernel_size), (layer.stride, layer.padding, padding, layer.groups, layer.dilation)
        transposed: Tensor = _TRANSPOSED[k](input, *weights, *more)
        return transposed


class FoldedNorm(_Generated):
    """Mixin of batch norms that a `FoldingLayer` computes: what remains is the activation and the residual.

    `layer`, `rest`: that layer, and the module for what remains, in tuples.
    """

    layer: tuple[nn.Module]
    rest: tuple[nn.Module]

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What remains; the batch norm's own where it is not frozen now."""
        if not _is_folded(self, input, self.layer[0]):
            return super().forward(input, *args, **kwargs)
        return self.rest[0](input, *args, **kwargs)


def _is_folded(norm: nn.Module, x: Tensor, layer: nn.Module) -> bool:
    """Whether the layer computes this batch norm in this call. x: the input of either."""
    return has_fixed_statistics(norm) and not (isinstance(layer, nn.Linear) and x.dim() != 2)


@cache
def _class_of(kinds: tuple[type[nn.Module], type[nn.Module]]) -> type[nn.Module]:
    """The subclass of this mixin and this original class."""
    mixin, original = kinds
    members = {"__module__": original.__module__, "__qualname__": original.__qualname__, "original": original}
    return type(original.__name__, (mixin, original), members)


def reason_to_leave(model: nn.Module, site: Site) -> str | None:
    """Why this site is not folded in training; None if it is."""
    layer = model.get_submodule(site.into[0])
    if len(site.into) != 1 or site.before or len(site.after) != 1:
        return "in training, one batch norm goes into the one layer before it"
    if _FORWARDS.get(type(layer)) is not type(layer).forward:
        return (
            f"{site.into[0]!r} is a {type(layer).__name__}, none of torch.nn's convolutions and linear layers"
        )
    return None


def make_frozen(model: nn.Module, site: Site) -> None:
    """Folds this site, which has no `reason_to_leave`, in place: both layers change their class, and nothing else."""
    layer: Any = model.get_submodule(site.into[0])
    norm: Any = model.get_submodule(site.after[0])
    vars(norm)["rest"] = (remainder(norm, with_options=True),)
    vars(norm)["layer"], vars(layer)["norm"] = (layer,), (norm,)
    layer.__class__, norm.__class__ = (
        _class_of((FoldingLayer, type(layer))),
        _class_of((FoldedNorm, type(norm))),
    )


def unfold_frozen(model: M) -> M:
    """Gives the layers of `make_frozen` in this model their classes again; returns it."""
    for module in model.modules():
        if isinstance(module, _Generated):
            for name in ("norm", "layer", "rest"):
                vars(module).pop(name, None)
            original: Any = module.original
            module.__class__ = original
    return model
