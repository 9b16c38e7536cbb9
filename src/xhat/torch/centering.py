"""A gradient loses a rough mean before autograd scales it, so that its offset costs no digits in float32."""

from typing import Any

import torch
from torch import Tensor

from xhat.torch.internals import (
    differentiating_forward,
    for_other_tools,
    functionalizing,
    tracing,
    transforming,
)

__all__ = ["centering", "less_rough_mean", "summed"]


def summed(v: Tensor) -> Tensor:
    """The sum over a channel of the elements on this rank."""
    return v.sum([0, *range(2, v.dim())], keepdim=True)


def _leading(v: Tensor, digits: int) -> Tensor:
    """The leading binary digits of numbers of float32, which have 24."""
    return (v.view(torch.int32) & -(1 << (24 - digits))).view(torch.float32)


def less_rough_mean(g: Tensor, rough: Tensor, w: Any) -> Tensor:
    """g - w rough, as if w rough were not rounded: dx and dgamma do not depend on it, since w xhat sums to 0.

    In float32, w and rough are taken apart. No product of their parts has more than 24 digits, and so none is rounded,
    even where a compiler contracts a product and a sum.
    """
    if not isinstance(w, Tensor) or g.dtype != torch.float32:
        centered: Tensor = g - w * rough
        return centered
    high = _leading(w, 16)
    for _ in range(3):
        part = _leading(rough, 8)
        g = g - high * part - (w - high) * part
        rough = rough - part
    return g


class _Centering(torch.autograd.Function):
    """z - sum(w z) / m, which is z = gamma xhat itself: its gradient loses a rough mean.

    A Function, and no hook, since compilers and torch.func have no hooks.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, w: Any) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*(inputs if isinstance(inputs[1], Tensor) else ()))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:
        z: Any
        z, w = ctx.saved_tensors or (None, None)
        with torch.no_grad():  # legacy vmap has no rule for detach
            rough = summed(g) / (g.numel() // g.shape[1] if w is None else w.sum())
        if w is None:
            return less_rough_mean(g, rough, 1), None
        return less_rough_mean(g, rough, w), -(rough * z).sum(1, keepdim=True)


def centering(z: Tensor, w: Any, m: Any) -> Tensor:
    """z = gamma xhat, whose gradient loses a rough mean.

    By the same sum where there can be no Function (in the forward mode, functionalize, compiled transforms and graphs
    for other tools): there, the product of the mean and a mask of fractions is rounded.
    """
    refused = transforming() and (tracing() or functionalizing())
    if refused or differentiating_forward() or for_other_tools():
        centered: Tensor = z - summed(w * z) / m
    else:
        centered = _Centering.apply(z, w)
    return centered
