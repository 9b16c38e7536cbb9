"""Right batch norms in PyTorch: functions, modules and autograd Functions."""

import torch
from torch import nn


def function(x, gamma, beta, eps=1e-5):
    return gamma * (x - x.mean(0)) * torch.rsqrt(x.var(0, unbiased=False) + eps) + beta


def by_axes(X, gamma, beta, moving_mean, moving_var, training=True, eps=1e-5, momentum=0.1):
    axes = (0,) if X.dim() == 2 else (0, 2, 3)
    wide = (1, -1) if X.dim() == 2 else (1, -1, 1, 1)
    if training:
        mean, var = X.mean(axes), X.var(axes, unbiased=False)
        with torch.no_grad():
            moving_mean.lerp_(mean, momentum)
            moving_var.lerp_(var, momentum)
    else:
        mean, var = moving_mean, moving_var
    xhat = (X - mean.view(wide)) / torch.sqrt(var.view(wide) + eps)
    return gamma.view(wide) * xhat + beta.view(wide)


def of_the_library(x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    return nn.functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)


def relu_after(x, weight, bias, eps=1e-5):
    return torch.relu(function(x, weight, bias, eps))


def silu_after(x, weight, bias, eps=1e-5):
    return nn.functional.silu(function(x, weight, bias, eps))


def written_forward(x, gamma, beta, eps=1e-5):
    mu = x.mean(0, keepdim=True)
    rstd = (x.var(0, keepdim=True, correction=0) + eps).rsqrt()
    return gamma * (x - mu) * rstd + beta, ((x - mu) * rstd, rstd, gamma)


def written_backward(grad_out, cache):
    xhat, rstd, gamma = cache
    g = grad_out * gamma
    return rstd * (g - g.mean(0) - xhat * (g * xhat).mean(0)), (grad_out * xhat).sum(0), grad_out.sum(0)


class Function(torch.autograd.Function):
    """Images; a backward by hand."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps=1e-5):
        dims = (0, 2, 3)
        rstd = torch.rsqrt(x.var(dims, unbiased=False, keepdim=True) + eps)
        xhat = (x - x.mean(dims, keepdim=True)) * rstd
        ctx.save_for_backward(xhat, rstd, weight)
        return xhat * weight[:, None, None] + bias[:, None, None]

    @staticmethod
    def backward(ctx, dy):
        xhat, rstd, weight = ctx.saved_tensors
        dims = (0, 2, 3)
        g = dy * weight[:, None, None]
        dx = rstd * (g - g.mean(dims, keepdim=True) - xhat * (g * xhat).mean(dims, keepdim=True))
        return dx, (dy * xhat).sum(dims), dy.sum(dims), None


class Module(nn.Module):
    """Keras's conventions as a module."""

    def __init__(self, features, eps=1e-3, momentum=0.99):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))
        self.register_buffer("moving_mean", torch.zeros(features))
        self.register_buffer("moving_var", torch.ones(features))
        self.eps, self.momentum = eps, momentum

    def forward(self, x):
        mean, var = self.moving_mean, self.moving_var
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            self.moving_mean = self.momentum * self.moving_mean + (1 - self.momentum) * mean.detach()
            self.moving_var = self.momentum * self.moving_var + (1 - self.momentum) * var.detach()
        return self.gamma * (x - mean) / (var + self.eps).sqrt() + self.beta


class Shaped(nn.Module):
    """Parameters with the axes of images or rows, by a number of axes."""

    def __init__(self, num_features, num_dims):
        super().__init__()
        shape = (1, num_features) if num_dims == 2 else (1, num_features, 1, 1)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.moving_mean, self.moving_var = torch.zeros(shape), torch.ones(shape)

    def forward(self, X):
        if not self.training:
            return self.gamma * (X - self.moving_mean) / torch.sqrt(self.moving_var + 1e-5) + self.beta
        dims = [a for a in range(X.dim()) if a != 1]
        mean, var = X.mean(dims, keepdim=True), X.var(dims, keepdim=True, unbiased=False)
        self.moving_mean = 0.9 * self.moving_mean + 0.1 * mean.detach()
        self.moving_var = 0.9 * self.moving_var + 0.1 * var.detach()
        return self.gamma * (X - mean) / torch.sqrt(var + 1e-5) + self.beta


class Stacked:
    """A class of tensors without autograd: bngain, bnbias and running statistics."""

    def __init__(self, dim, eps=1e-5, momentum=0.1):
        self.eps, self.momentum, self.training = eps, momentum, True
        self.gamma, self.beta = torch.ones(dim), torch.zeros(dim)
        self.running_mean, self.running_var = torch.zeros(dim), torch.ones(dim)

    def __call__(self, x):
        if self.training:
            xmean, xvar = x.mean(0, keepdim=True), x.var(0, keepdim=True)
        else:
            xmean, xvar = self.running_mean, self.running_var
        self.out = self.gamma * ((x - xmean) / torch.sqrt(xvar + self.eps)) + self.beta
        if self.training:
            with torch.no_grad():
                self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * xmean
                self.running_var = (1 - self.momentum) * self.running_var + self.momentum * xvar
        return self.out


CASES = {
    "a function": (function, None),
    "rows or images": (by_axes, None),
    "the library's function": (of_the_library, None),
    "relu after it": (relu_after, None),
    "silu after it": (silu_after, None),
    "a backward by hand": (written_forward, written_backward),
    "an autograd Function": (Function, None),
    "a module": (Module, None),
    "a module with wide parameters": (Shaped, None),
    "a class with the unbiased variance": (Stacked, None),
    "the library's module": (nn.BatchNorm1d, None),
    "the library's module for images": (nn.BatchNorm2d, None),
}
