"""A PyTorch autograd Function with a backward written by hand. Right."""

import torch


class BatchNormFunction(torch.autograd.Function):
    """y = gamma xhat + beta over the batch axis."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        """Save xhat and rstd."""
        rstd = torch.rsqrt(x.var(0, unbiased=False) + eps)
        xhat = (x - x.mean(0)) * rstd
        ctx.save_for_backward(xhat, rstd, weight)
        return weight * xhat + bias

    @staticmethod
    def backward(ctx, grad_output):
        """The closed form; eps has no gradient."""
        xhat, rstd, weight = ctx.saved_tensors
        grad_weight, grad_bias = (grad_output * xhat).sum(0), grad_output.sum(0)
        m = grad_output.shape[0]
        grad_input = weight * rstd * (grad_output - grad_bias / m - xhat * grad_weight / m)
        return grad_input, grad_weight, grad_bias, None
