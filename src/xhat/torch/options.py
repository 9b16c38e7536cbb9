"""What one call of batch norm is told besides its tensors, checked once: options, and a batch's statistics."""

from functools import lru_cache
from typing import Any, NamedTuple

from torch import Tensor
from torch.compiler import is_compiling

from xhat.checks import activation_of, check_correction, check_eps
from xhat.errors import ArgumentError

__all__ = ["NONFINITE", "Batch", "Options", "check_nonfinite", "options_of"]

NONFINITE = ("propagate", "skip", "raise")


class Options(NamedTuple):
    """eps, the correction c of m - c, and the activation (None, "leaky_relu" or "silu") with its slope."""

    eps: float
    correction: int
    activation: str | None
    slope: float

    @property
    def linear(self) -> "Options":
        """The same without an activation."""
        return self._replace(activation=None, slope=0.0)


class Batch(NamedTuple):
    """A batch's statistics: mean and var = m2 / (m - c) of each channel (2, C), and m (a number, or a scalar)."""

    statistics: Tensor
    count: Any


def options_of(eps: float, correction: int, activation: Any) -> Options:
    """The options, checked; once for each, but in a graph, which can't see that. Raises ArgumentError."""
    try:
        return (_checked if is_compiling() else _remembered)(eps, correction, activation)
    except TypeError:  # a list, for example, can't be remembered
        return _checked(eps, correction, activation)


def _checked(eps: float, correction: int, activation: Any) -> Options:
    return Options(check_eps(eps, "batch_norm"), check_correction(correction, "batch_norm"),
                   *activation_of(activation, "batch_norm"))  # fmt: skip


_remembered = lru_cache(maxsize=1024, typed=True)(_checked)  # 0 is a correction, 0.0 is none


def check_nonfinite(nonfinite: str) -> str:
    """The policy for batches with NaN or infinity. Raises ArgumentError for an unknown one."""
    if nonfinite not in NONFINITE:
        raise ArgumentError(
            f"batch_norm: nonfinite is {nonfinite!r}, expected one of {', '.join(map(repr, NONFINITE))}."
        )
    return nonfinite
