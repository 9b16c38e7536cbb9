"""A torch.autograd.Function with saved tensors."""

import torch


class BatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, beta, eps=1e-5):
        mean = x.mean(dim=0)
        var = x.var(dim=0, unbiased=False)
        inv_std = 1 / torch.sqrt(var + eps)
        x_hat = (x - mean) * inv_std
        ctx.save_for_backward(x_hat, gamma, inv_std)
        return gamma * x_hat + beta

    @staticmethod
    def backward(ctx, grad_output):
        x_hat, gamma, inv_std = ctx.saved_tensors
        B = grad_output.shape[0]
        grad_beta = grad_output.sum(dim=0)
        grad_gamma = (grad_output * x_hat).sum(dim=0)
        grad_x_hat = grad_output * gamma
        mean_term = grad_x_hat.mean(dim=0)
        var_term = x_hat * (grad_x_hat * x_hat).mean(dim=0)
        grad_input = inv_std * (grad_x_hat - mean_term - var_term)
        return grad_input, grad_gamma, grad_beta, None
