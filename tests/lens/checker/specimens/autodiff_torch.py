"""A forward in PyTorch; its backward is autograd's. Images, any number of positions. Right."""

import torch


def batch_norm(x, weight, bias, running_mean, running_var, training=True, momentum=0.1, eps=1e-5):
    """y; the running statistics are updated in place."""
    axes = [a for a in range(x.ndim) if a != 1]
    wide = [1, -1] + [1] * (x.ndim - 2)
    if training:
        var, mean = torch.var_mean(x, dim=axes, unbiased=False)
        m = x.numel() / x.shape[1]
        with torch.no_grad():
            running_mean.mul_(1 - momentum).add_(momentum * mean)
            running_var.mul_(1 - momentum).add_(momentum * var * m / (m - 1))
    else:
        mean, var = running_mean, running_var
    xhat = (x - mean.view(wide)) / torch.sqrt(var.view(wide) + eps)
    return xhat * weight.view(wide) + bias.view(wide)
