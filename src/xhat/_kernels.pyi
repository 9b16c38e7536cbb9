"""
The compiled kernels. Arrays are (address or buffer, strides in elements); xhat.ops is their only caller.
"""

from collections.abc import Sequence
from typing import Any


DTYPES: dict[str, int]

ACTIVATIONS: dict[str, int]

ACTIVATION_GRADS: dict[str, int]

def forward(reduce: bool, map: bool, dtype: int, shape: Sequence[int], x: object, weights: object | None, gamma: object | None, beta: object | None, residual: object | None, y: object | None, mean: object, var: object, divisor: float, eps: float, activation: int, slope: float) -> None:
    """
    moments (reduce: writes mean and m2 / divisor) and normalize (map: writes y).
    """

def backward(reduce: bool, map: bool, dtype: int, shape: Sequence[int], x: object, weights: object | None, gamma: object | None, beta: object | None, dy: object, extra: object | None, dx: object | None, dresidual: object | None, mean: object, var: object, sum_dy: object, sum_dy_xhat: object, count: float, divisor: float, eps: float, activation_grad: int, slope: float) -> None:
    """
    gradient_sums (reduce: writes both sums) and input_gradient (map: writes dx, and dresidual where extra is read).
    """

def track(channels: int, mean: object, var: object, batches: object | None, batch: object, weight: float, factor: float) -> None:
    """
    track: mean += weight (batch mean - mean), var += weight (factor batch var - var), batches += 1.
    """

class Calls:
    """
    Calls that were made before, and are run again without the gate. None where one was not.
    """

    def __init__(self, array: object, dtypes: Sequence[object], empty: object, empty_like: object) -> None: ...

    def forward(self, asked: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """
        (x, mean, var, gamma, beta, residual, out, options...) -> (y, statistics, form, whether y is over x).
        """

    def backward(self, asked: tuple[Any, ...], form: object) -> tuple[Any, ...] | None:
        """
        (dy, x, extra, dx, dresidual, statistics), form -> (dx, dgamma, dbeta, dresidual).
        """

    def remember_forward(self, asked: tuple[Any, ...], form: object, statistics_shape: object, reduce: bool, dtype: int, shape: Sequence[int], strides: Sequence[object], divisor: float, eps: float, activation: int, slope: float) -> None:
        """
        What the gate found of a call; strides on the view are those of x, residual and y.
        """

    def remember_backward(self, asked: tuple[Any, ...], form: object, channels: object, gamma_dtype: object | None, beta_dtype: object | None, dtype: int, shape: Sequence[int], strides: Sequence[object], count: float, divisor: float, eps: float, activation_grad: int, slope: float) -> None:
        """Likewise; strides are those of x, dy, extra, dx and dresidual."""

def isa() -> str:
    """The instruction set in use."""

def isa_available() -> list[str]:
    """The instruction sets that this machine can run, best first."""

def use_isa(name: str) -> bool:
    """
    Forces an instruction set; False where it is unknown or this machine can't run it.
    """

def threads() -> int:
    """How many threads the next call would use."""
