"""What a fold takes out of a model, what stands in its place, and how it is given back.

Which layers these are must never be decided here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xhat.errors import ArgumentError
from xhat.torch.fold.norms import affine, remainder
from xhat.torch.fold.sites import Site, folded_weights
from xhat.torch.fold.weights import rounded, set_parameters

__all__ = ["Parts", "apply"]


@dataclass(eq=False)
class Parts:
    """The batch norms of a site by their paths, and for each of its layers the parameters and padding that it had.

    made: copies of the parameters that the layers got, so that a later change to them shows.
    """

    site: Site
    norms: dict[str, nn.Module]
    before: dict[str, tuple[Any, Any]]
    padding: tuple[Any, ...] | None
    made: dict[str, tuple[Tensor, Tensor]]

    def check(self, model: nn.Module) -> None:
        """Raises ArgumentError if these are no parts of this model as it is now."""
        for path in (*self.site.into, *self.site.norms):
            try:
                layer: Any = model.get_submodule(path)
            except AttributeError:
                raise ArgumentError(
                    f"unfold: the model has no layer {path!r}. Pass the changes that `fold` returned with this model."
                ) from None
            if path not in self.made:
                continue
            for name, made in zip(("weight", "bias"), self.made[path], strict=True):
                present = getattr(layer, name, None)
                if not (isinstance(present, Tensor) and _is_equal(present, made)):
                    raise ArgumentError(
                        f"unfold: {path}.{name} is not what `fold` made, so that a change to it would be lost. Unfold "
                        "before the model is trained or cast."
                    )

    def give_back(self, model: nn.Module) -> None:
        """Puts the parts in their places."""
        for path, (weight, bias) in self.before.items():
            layer: Any = model.get_submodule(path)
            device = layer.weight.device
            for value in (weight, bias):
                if value is not None:
                    value.data = value.data.to(device)
            layer.weight, layer.bias = weight, bias
            if hasattr(layer, "affine"):
                layer.affine = weight is not None
            if self.padding is not None:
                layer.padding, layer._reversed_padding_repeated_twice = self.padding
        for path, norm in self.norms.items():
            _replace(model, model.get_submodule(path), norm.to(device))


def _is_equal(present: Tensor, made: Tensor) -> bool:
    return present.dtype == made.dtype and torch.equal(present.detach().cpu(), made.detach().cpu())


def apply(model: nn.Module, original: nn.Module, sites: Sequence[Site], options: set[str]) -> list[Parts]:
    """Folds these sites in the model, in place, with weights that are computed from `original` in float64."""
    return [_apply(model, original, site, options) for site in sites]


def _apply(model: nn.Module, original: nn.Module, site: Site, options: set[str]) -> Parts:
    before, made, norms, padding = {}, {}, {}, None
    for path, weights in zip(site.into, folded_weights(original, site), strict=True):
        layer: Any = model.get_submodule(path)
        before[path] = layer.weight, layer.bias
        like = layer.running_mean if layer.weight is None else layer.weight
        set_parameters(layer, rounded(weights, like.dtype), like)
        if site.border:
            padding = layer.padding, layer._reversed_padding_repeated_twice
            layer.padding, layer._reversed_padding_repeated_twice = (
                (0,) * len(layer.kernel_size),
                [0] * len(padding[1]),
            )
        made[path] = layer.weight.detach().clone(), layer.bias.detach().clone()
    for path in site.norms:
        norms[path] = norm = model.get_submodule(path)
        rest = remainder(norm, path in options)
        if padding is not None and path in site.before:
            rest = Border(norm, padding[1], like.dtype)
        _replace(model, norm, rest)
    return Parts(site, norms, before, padding, made)


class Border(nn.Module):
    """Pads x so that scale x + shift is 0 in the padding: with -shift / scale of each channel.

    Stands in the place of a batch norm that was folded into a convolution behind it which padded with zeros, and now
    pads nothing. `value`, a buffer, has one number for each channel.
    """

    value: Tensor

    def __init__(self, norm: nn.Module, padding: Sequence[int], dtype: torch.dtype) -> None:
        super().__init__()
        f = affine(norm)
        self.padding = tuple(padding)
        value = (-f.shift / f.scale).detach().to(dtype)
        self.register_buffer("value", value.reshape(-1, *[1] * (len(padding) // 2)))

    def forward(self, input: Tensor) -> Tensor:
        """x inside, where it is not changed, and `value` around it."""
        inside = F.pad(torch.ones_like(input[:1, :1]), self.padding)
        return F.pad(input, self.padding) + self.value * (1 - inside)

    def extra_repr(self) -> str:
        """The padding."""
        return f"padding={self.padding}"


def _replace(model: nn.Module, old: nn.Module, replacement: nn.Module) -> None:
    """Puts a module in the place of another wherever that is registered."""
    for parent, name in list(_places(model, old)):
        parent._modules[name] = replacement


def _places(model: nn.Module, module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for parent in model.modules():
        yield from ((parent, name) for name, child in parent._modules.items() if child is module)
