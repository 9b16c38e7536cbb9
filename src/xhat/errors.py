"""What can go wrong, as classes; every class is also the standard error a caller would catch.

Nothing else lives here. A sentence is written where its check is made: what came, what was expected, the remedy.
"""

__all__ = [
    "ArgumentError",
    "ContextError",
    "DegenerateBatchError",
    "DtypeError",
    "EngineError",
    "OptionError",
    "OutputError",
    "ShapeError",
    "XhatError",
]


class XhatError(Exception):
    """The base of every error that xhat raises on purpose."""


class ShapeError(XhatError, ValueError):
    """An array has the wrong rank, length or axis."""


class DtypeError(XhatError, TypeError):
    """An array has a dtype that batch normalization is not defined for, or that does not fit the others."""


class ArgumentError(XhatError, ValueError):
    """An option has a value outside its domain (eps, correction, activation, mask weights, momentum)."""


class OptionError(ArgumentError, TypeError):
    """An option that the function does not have."""


class DegenerateBatchError(XhatError, ValueError):
    """The batch has too few values per channel for a variance (m <= correction, or a single value)."""


class OutputError(XhatError, ValueError):
    """A preallocated result can't be written: read-only, wrong shape or dtype, or overlapping an input."""


class ContextError(XhatError, ValueError):
    """The backward pass was given something that is not the context of a matching forward pass."""


class EngineError(XhatError, ValueError):
    """The requested instruction set is unknown, or this machine can't run it."""
