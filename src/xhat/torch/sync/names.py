"""How ranks know each other's layers: by the path in the model, and by a number among the layers with this path.

Two models on their own (a generator and a discriminator) have layers with the same paths. In a process group, the
layers with one path are numbered in the order in which they complete their first exchange, which is the same on all
ranks. What a layer computes or exchanges must never live here.
"""

import weakref
from collections import Counter
from typing import Any

from torch import nn

from xhat.torch.errors import path_of
from xhat.torch.sync.groups import group_of

__all__ = ["has_exchanged", "keep_number", "number_of", "path_in_model"]


class _Numbers:
    """The numbers of the layers of one process group."""

    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self.used: Counter[str] = Counter()  # path -> how many layers have a number


_numbers: "weakref.WeakKeyDictionary[Any, _Numbers]" = weakref.WeakKeyDictionary()
_exchanged: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def _numbers_in(name: str) -> _Numbers:
    group = group_of(name)
    found = _numbers.get(group)
    if found is None:
        found = _numbers[group] = _Numbers()
    return found


def number_of(layer: nn.Module, path: str, group: str) -> int:
    """The number of this layer; the next one if it has none yet."""
    numbers = _numbers_in(group)
    found = numbers.of.get(layer)
    return numbers.used[path] if found is None else found


def keep_number(layer: nn.Module, path: str, group: str) -> None:
    """Makes the number that `number_of` returns the layer's own: its first exchange is complete."""
    numbers = _numbers_in(group)
    if layer not in numbers.of:
        numbers.of[layer] = numbers.used[path]
        numbers.used[path] += 1
        _exchanged.add(layer)


def has_exchanged(layer: nn.Module) -> bool:
    """Whether this layer has shared a batch with other ranks. A copy of it has not."""
    return layer in _exchanged


def path_in_model(layer: nn.Module) -> str:
    """The layer's path in the running model, without the names of wrappers (DistributedDataParallel, compile)."""
    return ".".join(part for part in path_of(layer).split(".") if part not in ("module", "_orig_mod"))
