"""Errors that are also the class torch raises for the same mistake, and the name of the layer that made it."""

import sys

from torch import nn
from torch.compiler import is_compiling

from xhat.errors import ArgumentError, DtypeError, ShapeError, XhatError

__all__ = [
    "ExchangeError",
    "TensorArgumentError",
    "TensorDtypeError",
    "TensorShapeError",
    "TensorTypeError",
    "first_line",
    "named",
    "path_of",
]


class TensorShapeError(ShapeError, RuntimeError):
    """A tensor has the wrong length: a ValueError here, a RuntimeError in torch."""


class TensorArgumentError(ArgumentError, RuntimeError):
    """A tensor can't take the part it is given: a ValueError here, a RuntimeError in torch."""


class TensorTypeError(ArgumentError, TypeError, AttributeError):
    """There is no tensor, or no number, where one is needed; torch raises TypeError, or AttributeError."""


class TensorDtypeError(DtypeError, NotImplementedError):
    """A dtype, layout or class of tensor has no batch norm here; torch raises NotImplementedError."""


class ExchangeError(XhatError, RuntimeError):
    """Processes could not exchange what a batch on many of them needs: they disagree, or one of them is gone."""


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def named(layer: nn.Module) -> str:
    """How a message calls this layer: by its path in the model whose forward is running, if there is one."""
    kind = type(layer).__name__
    if is_compiling():  # there is no stack; without fullgraph the call is repeated outside of the graph
        return kind
    found = path_of(layer)
    return f"{kind} {found!r}" if found else kind


def path_of(layer: nn.Module) -> str:
    """The layer's path in the model whose forward is running, '' where none is.

    A layer does not know its model, and must not: it can be used in two. But while a message is written, the
    modules that called the layer are on the stack, and the outermost that holds it knows its path.
    """
    found = ""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner is not layer:
            found = next((name for name, m in owner.named_modules() if m is layer), found)
        frame = frame.f_back  # type: ignore[assignment]
    return found
