"""The source of the project as it stands: 1/N in the forward, 1/(n - 1) in the variance path. Wrong."""

import numpy as np


def forward(x, gamma, beta, epsilon):
    """Forward Pass, 1. to 4."""
    mu = x.mean(axis=0)
    sigma2 = ((x - mu) ** 2).mean(axis=0)
    x_hat = (x - mu) / np.sqrt(sigma2 + epsilon)
    return gamma * x_hat + beta, (x_hat, gamma, np.sqrt(sigma2 + epsilon))


def backward(dL_dy, cache):
    """The last line of the source."""
    x_hat, gamma, sigma = cache
    n = dL_dy.shape[0]
    dgamma = (dL_dy * x_hat).sum(axis=0)
    dbeta = dL_dy.sum(axis=0)
    dx = gamma / (n * sigma) * (n * dL_dy - n / (n - 1) * x_hat * dgamma - dbeta)
    return dx, dgamma, dbeta
