"""Values that hold tensors: batches and outputs, as tuples, dicts or dataclasses of any depth."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["mapped", "tensors"]


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in this value, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors(getattr(value, field.name, None))


def mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same value with function(tensor) in place of each tensor; what holds no tensor is the same object."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (dict, list, tuple)):
        if type(value) is dict:
            return {name: mapped(function, item) for name, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(mapped(function, item) for item in value)
        if hasattr(value, "_fields"):  # a named tuple
            return type(value)(*(mapped(function, item) for item in value))
    return value
