"""Loops over channels and values, as somebody from C would write them."""

import numpy as np


def bn_forward(x, gamma, beta, eps):
    n, c = x.shape
    y, xhat = np.zeros((n, c)), np.zeros((n, c))
    rstd = np.zeros(c)
    for j in range(c):
        mean = 0.0
        for i in range(n):
            mean += x[i, j] / n
        var = 0.0
        for i in range(n):
            var += (x[i, j] - mean) ** 2 / n
        rstd[j] = 1.0 / np.sqrt(var + eps)
        for i in range(n):
            xhat[i, j] = (x[i, j] - mean) * rstd[j]
            y[i, j] = gamma[j] * xhat[i, j] + beta[j]
    return y, (xhat, gamma, rstd)


def bn_backward(dy, cache):
    xhat, gamma, rstd = cache
    n, c = dy.shape
    dx, dgamma, dbeta = np.zeros((n, c)), np.zeros(c), np.zeros(c)
    for j in range(c):
        for i in range(n):
            dgamma[j] += dy[i, j] * xhat[i, j]
            dbeta[j] += dy[i, j]
        for i in range(n):
            mean_path = dbeta[j] / n
            var_path = xhat[i, j] * dgamma[j] / n
            dx[i, j] = gamma[j] * rstd[j] * (dy[i, j] - mean_path - var_path)
    return dx, dgamma, dbeta
