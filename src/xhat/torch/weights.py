"""A mask's numbers: as the kernels walk them, and back in the order of x's dimensions. No arithmetic lives here."""

import math

import torch
from torch import Tensor

from xhat.errors import ArgumentError
from xhat.layout import View

__all__ = ["check_numbers", "mask_of", "weights_in_order"]


def check_numbers(mask: Tensor) -> None:
    """Raises ArgumentError for what is no weight."""
    if mask.dtype != torch.bool and not bool(((mask >= 0) & (mask < math.inf)).all()):
        raise ArgumentError(
            "batch_norm: mask has a negative, infinite or NaN weight, expected finite weights of at least 0."
        )


def weights_in_order(mask: Tensor, x: Tensor, view: View) -> Tensor:
    """A copy of the mask's numbers in float64, as the view walks them. Raises ArgumentError for what is no weight."""
    check_numbers(mask)
    rest, order = _walked(x, view)
    own = mask.to(torch.float64, copy=True).expand([1 if a == 1 else n for a, n in enumerate(x.shape)])
    return own.permute(rest + order).reshape(-1).contiguous()


def mask_of(weights: Tensor, x: Tensor, view: View) -> Tensor:
    """Such weights as a mask again, of size 1 along the channels."""
    rest, order = _walked(x, view)
    sizes = [*[1] * len(rest), *(x.shape[a] for a in order)]
    axes = rest + order
    return weights.reshape(sizes).permute([axes.index(a) for a in range(x.dim())])


def _walked(x: Tensor, view: View) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes along which a mask has size 1, and those that its numbers are walked by."""
    order = view.outer + view.inner
    return tuple(a for a in range(x.dim()) if a not in order), order
