"""Errors that are also the class torch raises for the same mistake, and the name of the layer that made it."""

import sys

from torch import nn

from xhat.errors import DtypeError, ShapeError

__all__ = ["TensorDtypeError", "TensorShapeError", "named"]


class TensorShapeError(ShapeError, RuntimeError):
    """A tensor of the wrong length: a ValueError here, a RuntimeError in torch."""


class TensorDtypeError(DtypeError, NotImplementedError):
    """A dtype, layout or class of tensor that has no batch norm here; torch raises NotImplementedError."""


def named(layer: nn.Module) -> str:
    """How a message calls this layer: by its path in the model whose forward is running, if there is one.

    A layer does not know its model, and must not: it can be used in two. But while a message is written, the
    modules that called the layer are on the stack, and the outermost that holds it knows its path.
    """
    kind = type(layer).__name__
    found = ""
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and owner is not layer:
            found = next((name for name, m in owner.named_modules() if m is layer), found)
        frame = frame.f_back  # type: ignore[assignment]
    return f"{kind} {found!r}" if found else kind
