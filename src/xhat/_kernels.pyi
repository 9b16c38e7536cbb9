"""
The compiled kernels. Their callers, xhat.ops and xhat.torch.cpu, check what a user gives.

Arrays share a view of shape (outer, channels, inner). Each is given as (memory, strides), where the strides are those
of the view's three axes, counted in elements. A vector has one element per channel: a memory of float64, or
(memory, dtype code). A memory is an object that exports a buffer, a torch tensor, or (address, bytes). The caller keeps
it alive during the call. Raises IndexError, before anything is written, where a call would leave it.
"""

from collections.abc import Sequence


DTYPES: dict[str, int]

ACTIVATIONS: dict[str, int]

ACTIVATION_GRADS: dict[str, int]

def forward(reduce: bool, map: bool, dtype: int, shape: Sequence[int], x: object, weights: object | None, gamma: object | None, beta: object | None, residual: object | None, y: object | None, mean: object, var: object, divisor: float, eps: float, activation: int, slope: float) -> None:
    """
    moments, normalize, or both, of one batch.

        mean = sum w x / m      var = sum w (x - mean)^2 / divisor
        y = act(gamma (x - mean) / sqrt(var + eps) + beta [+ residual])

    reduce: compute mean and var from x; otherwise they are inputs. map: write y.
    dtype: the code of the arrays' dtype, see DTYPES. shape: of the view (outer, channels, inner).
    x: array. weights: w, outer * inner contiguous elements of float64; None: all 1.
    gamma, beta: vectors; None: 1 and 0. residual: array or None. y: array, may be x; None without `map`.
    mean, var: vectors of float64, written if `reduce` is true.
    divisor: m - correction, where m = sum w; 1 gives m2 in place of var. eps: added to var.
    activation: a code of ACTIVATIONS. slope: of leaky_relu below zero (0: relu).
    """

def backward(reduce: bool, map: bool, dtype: int, shape: Sequence[int], x: object, weights: object | None, gamma: object | None, beta: object | None, dy: object, saved: object | None, dx: object | None, dresidual: object | None, mean: object, var: object, sum_dy: object, sum_dy_xhat: object, count: float, divisor: float, eps: float, activation_grad: int, slope: float) -> None:
    """
    gradient_sums, input_gradient, or both, of one batch.

        g = dy act'(pre)      sum_dy = sum g      sum_dy_xhat = sum g xhat      dresidual = g
        dx = gamma rstd (g - w sum_dy / count - w xhat sum_dy_xhat / divisor)

    reduce: compute sum_dy and sum_dy_xhat; otherwise they are inputs. map: write dx and dresidual.
    dtype, shape, x, weights, gamma, beta, eps, slope: as in forward.
    dy: array. saved: array that act' needs besides x, if any: y or the residual, see activation_grad.
    dx: array, may be dy; None without `map`. dresidual: array, written if `saved` is given; else None.
    mean, var: vectors, those of the forward pass. sum_dy, sum_dy_xhat: vectors, written if `reduce` is true.
    count, divisor: m = sum w, and m - correction; infinite if mean and var are constants: then dx = gamma rstd g.
    activation_grad: a code of ACTIVATION_GRADS: the activation, and the arrays from which act'(pre) is recomputed.
    """

def track(channels: int, mean: object, var: object, batches: object | None, batch: object, weight: float, factor: float) -> None:
    """
    Moves running statistics towards those of a batch.

        mean += weight (batch[0] - mean)      var += weight (factor batch[1] - var)      batches += 1

    channels: their number C. mean, var: vectors. batches: one int64; None: not counted.
    batch: (2, C) contiguous float64, mean and var of the batch. weight: of the batch, 0 to 1 (torch's momentum).
    factor: what makes batch[1] the variance that is tracked, e.g. m / (m - 1).
    """

def isa() -> str:
    """The instruction set in use."""

def isa_available() -> list[str]:
    """The instruction sets that this machine can run, best first."""

def use_isa(name: str) -> bool:
    """
    Forces an instruction set. False if the name is unknown or this machine can't run it.
    """

def threads() -> int:
    """How many threads the next call would use."""
