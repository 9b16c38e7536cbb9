"""Which module has made the input of each batch norm: a layer with a bias, or dropout. Nothing is judged here."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from xhat.torch.doctor.layers import Layer

__all__ = ["DROPOUTS", "Origins", "traced_origins"]

DROPOUTS = (nn.modules.dropout._DropoutNd,)
_LINEAR = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd)


class Origins:
    """feeds: the path of a batch norm -> path and module of what made its input, where that is one of these kinds."""

    def __init__(self) -> None:
        self.feeds: dict[str, tuple[str, nn.Module]] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], str, nn.Module]] = {}

    def made(self, y: Any, path: str, module: nn.Module) -> None:
        """This module has returned y. Only a weak reference is kept: activations are freed as usual."""
        if isinstance(y, Tensor):
            self._made[id(y)] = weakref.ref(y), path, module

    def taken(self, x: Any, layer: Layer) -> None:
        """This batch norm gets x."""
        found = self._made.get(id(x))
        if found is not None and found[0]() is x:
            self.feeds[layer.path] = found[1:]


@contextmanager
def traced_origins(model: nn.Module, layers: list[Layer], origins: Origins) -> Iterator[None]:
    """Surrounds one forward pass, with hooks that are removed afterwards."""
    hooks = []
    try:
        for path, module in model.named_modules():
            if isinstance(module, (*_LINEAR, *DROPOUTS)):
                hooks.append(module.register_forward_hook(_maker(origins, path)))
        for layer in layers:
            hooks.append(layer.module.register_forward_pre_hook(_taker(origins, layer), with_kwargs=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _maker(origins: Origins, path: str) -> Any:
    return lambda module, args, y: origins.made(y, path, module)


def _taker(origins: Origins, layer: Layer) -> Any:
    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        origins.taken(next(iter((*args, *kwargs.values())), None), layer)

    return take
