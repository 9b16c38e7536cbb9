"""Batch norm step by step: nine nodes forward, the same nine backward in reverse. Right."""

import numpy as np


def batchnorm_forward(x, gamma, beta, eps):
    """y, and what the backward needs."""
    n = x.shape[0]
    mu = 1.0 / n * np.sum(x, axis=0)  # node 1
    xmu = x - mu  # node 2
    sq = xmu**2  # node 3
    var = 1.0 / n * np.sum(sq, axis=0)  # node 4
    sqrtvar = np.sqrt(var + eps)  # node 5
    ivar = 1.0 / sqrtvar  # node 6
    xhat = xmu * ivar  # node 7
    gammax = gamma * xhat  # node 8
    out = gammax + beta  # node 9
    return out, (xhat, gamma, xmu, ivar, sqrtvar, var, eps)


def batchnorm_backward(dout, cache):
    """dx, dgamma and dbeta, node by node."""
    xhat, gamma, xmu, ivar, sqrtvar, var, eps = cache
    n = dout.shape[0]
    dbeta = np.sum(dout, axis=0)  # node 9
    dgammax = dout
    dgamma = np.sum(dgammax * xhat, axis=0)  # node 8
    dxhat = dgammax * gamma
    divar = np.sum(dxhat * xmu, axis=0)  # node 7
    dxmu1 = dxhat * ivar
    dsqrtvar = -1.0 / (sqrtvar**2) * divar  # node 6
    dvar = 0.5 * 1.0 / np.sqrt(var + eps) * dsqrtvar  # node 5
    dsq = 1.0 / n * np.ones_like(dout) * dvar  # node 4
    dxmu2 = 2 * xmu * dsq  # node 3
    dx1 = dxmu1 + dxmu2  # node 2
    dmu = -1 * np.sum(dxmu1 + dxmu2, axis=0)
    dx2 = 1.0 / n * np.ones_like(dout) * dmu  # node 1
    dx = dx1 + dx2
    return dx, dgamma, dbeta
