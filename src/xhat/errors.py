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
    """The base of every error that xhat raises on purpose.

    Each class is also the standard error that a caller would catch, such as a ValueError.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> from xhat.errors import XhatError
    >>> try:
    ...     xhat.batch_norm(np.ones((2, 3)), eps=-1)
    ... except XhatError as error:
    ...     print(type(error).__name__, isinstance(error, ValueError))
    ArgumentError True
    """


class ShapeError(XhatError, ValueError):
    """An array has the wrong rank, length or axis.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> xhat.batch_norm(np.ones((2, 3)), gamma=np.ones(2))
    Traceback (most recent call last):
    xhat.errors.ShapeError: batch_norm: gamma has shape (2,), expected (3,) to match axis 1 of x (2, 3).
    """


class DtypeError(XhatError, TypeError):
    """An array has a dtype that batch normalization is not defined for, or that does not fit the others.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> xhat.batch_norm(np.ones((2, 3), dtype=np.int64))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    xhat.errors.DtypeError: batch_norm: x has dtype int64, expected float64, float32, float16 or bfloat16...
    """


class ArgumentError(XhatError, ValueError):
    """An option has a value outside its domain (eps, correction, activation, mask weights, momentum).

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> xhat.batch_norm(np.ones((2, 3)), correction=2)
    Traceback (most recent call last):
    xhat.errors.ArgumentError: batch_norm: correction is 2, expected 0 (divide by m) or 1 (divide by m - 1).
    """


class OptionError(ArgumentError, TypeError):
    """The function does not have an option of this name.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> xhat.batch_norm(np.ones((2, 3)), epsilon=1e-3)
    Traceback (most recent call last):
    xhat.errors.OptionError: batch_norm: got an option 'epsilon', which it does not have. It is called eps here.
    """


class DegenerateBatchError(XhatError, ValueError):
    """The batch has too few values per channel for a variance (m <= correction, or a single value).

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> xhat.batch_norm(np.ones((1, 3)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    xhat.errors.DegenerateBatchError: batch_norm: x (1, 3) has one value per channel, expected at least 2...
    """


class OutputError(XhatError, ValueError):
    """A preallocated result can't be written: read-only, wrong shape or dtype, or overlapping an input.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> xhat.batch_norm(np.ones((2, 3)), out=np.ones((3, 3)))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    xhat.errors.OutputError: batch_norm: out has shape (3, 3) and dtype float64, expected (2, 3) and float64...
    """


class ContextError(XhatError, ValueError):
    """The backward pass was given something that is not the context of a matching forward pass.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> xhat.batch_norm_backward(np.ones((2, 3)), None)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    xhat.errors.ContextError: batch_norm_backward: context is NoneType, expected the context that batch_norm returned...
    """


class EngineError(XhatError, ValueError):
    """The requested instruction set is unknown, or this machine can't run it.

    ``import xhat`` raises it if the environment variable ``XHAT_ISA`` names such an instruction set.

    Examples
    --------
    >>> from xhat.errors import EngineError
    >>> issubclass(EngineError, ValueError)
    True
    """
