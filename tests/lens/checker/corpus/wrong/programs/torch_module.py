"""A torch.nn.Module that autograd differentiates."""

import torch
from torch import nn


class MyBatchNorm(nn.Module):
    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.eps = eps

    def forward(self, x):
        mean = x.mean(dim=0)
        var = (x - mean).pow(2).mean(dim=0)
        std = torch.sqrt(var + self.eps)
        x_hat = (x - mean) / std
        return self.weight * x_hat + self.bias
