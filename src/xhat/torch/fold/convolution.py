"""A convolution with scaled weights, of which autograd keeps the weights, and not what they are scaled to.

torch's own operations compute it; which scale that is must never be decided here.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from xhat.torch.fold.norms import Affine
from xhat.torch.fold.weights import Weights, map_after, rounded, scale_in_place, scaled, sums_of_outputs

__all__ = ["output_padding", "scaled_convolution", "takes"]


def takes(layer: nn.Module) -> bool:
    """Whether this is a convolution that pads with zeros, by numbers."""
    return isinstance(layer, _ConvNd) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def output_padding(layer: Any, x: Tensor, args: tuple[Any, ...]) -> list[int]:
    """What a transposed convolution adds to one side; args: output_size, if it is given."""
    k, size = len(layer.kernel_size), args[0] if args else None
    found: list[int] = layer._output_padding(
        x, size, layer.stride, layer.padding, layer.kernel_size, k, layer.dilation
    )
    return found


def scaled_convolution(layer: Any, x: Tensor, args: tuple[Any, ...], f: Affine, bias: Tensor) -> Tensor:
    """y = f(W x + bias), of which scale W is made anew in the backward pass.

    dW = scale dW'      dscale = sum over inputs and taps of W dW'      with dW' the gradient of scale W
    """
    made = map_after(layer, Weights(layer.weight.detach(), bias), f)
    product, bias = rounded(made, layer.weight.dtype)
    transposed = isinstance(layer, _ConvTransposeNd)
    extra = output_padding(layer, x, args) if transposed else [0] * len(layer.kernel_size)
    options = layer.stride, layer.padding, layer.dilation, transposed, extra, layer.groups
    y: Tensor = _ScaledConvolution.apply(x, layer.weight, f.scale, bias, product.detach(), layer, options)
    return y


class _ScaledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        product: Tensor,
        layer: Any,
        options: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.layer, ctx.options = layer, options
        return torch.convolution(x, product, bias, *options)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> Any:
        (dy,), (x, weight, scale) = dys, ctx.saved_tensors
        product = scaled(ctx.layer, weight, scale).to(weight.dtype)
        needed = [ctx.needs_input_grad[0], any(ctx.needs_input_grad[1:3]), ctx.needs_input_grad[3]]
        dx, dproduct, dbias = torch.ops.aten.convolution_backward(
            dy, x, product, [len(scale)], *ctx.options, needed
        )
        dscale = (
            sums_of_outputs(ctx.layer, dproduct, weight).to(scale.dtype) if ctx.needs_input_grad[2] else None
        )
        kept = (
            torch.is_grad_enabled() or not needed[1] or not dproduct.is_contiguous()
        )  # for a second derivative
        apply = scaled if kept else scale_in_place
        dweight = apply(ctx.layer, dproduct, scale) if ctx.needs_input_grad[1] else None
        return dx, dweight, dscale, dbias, None, None, None
