"""A forward in PyTorch with detached statistics. Wrong: dx lacks two paths."""

import torch


def batch_norm(x, gamma, beta, eps=1e-5):
    """y is right, its gradient is not."""
    with torch.no_grad():
        mean, var = x.mean(0), x.var(0, unbiased=False)
    return gamma * (x - mean) / torch.sqrt(var + eps) + beta
