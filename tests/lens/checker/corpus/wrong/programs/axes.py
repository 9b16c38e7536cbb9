"""Images in NCHW, with sums over a tuple of axes and parameters that broadcast."""

import numpy as np

AXES = (0, 2, 3)


def bn_forward(x, gamma, beta, eps):
    gamma, beta = gamma.reshape(1, -1, 1, 1), beta.reshape(1, -1, 1, 1)
    mean = x.mean(axis=AXES, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=AXES, keepdims=True)
    rstd = (var + eps) ** -0.5
    xhat = (x - mean) * rstd
    return gamma * xhat + beta, (xhat, gamma, rstd)


def bn_backward(dy, cache):
    xhat, gamma, rstd = cache
    m = dy.shape[0] * dy.shape[2] * dy.shape[3]
    dxhat = gamma * dy
    sum_d = dxhat.sum(axis=AXES, keepdims=True)
    sum_dx = (dxhat * xhat).sum(axis=AXES, keepdims=True)
    dx = rstd * dxhat
    dx = dx - rstd * sum_d / m
    dx = dx - rstd * xhat * sum_dx / m
    dgamma = (dy * xhat).sum(axis=AXES)
    dbeta = dy.sum(axis=AXES)
    return dx, dgamma, dbeta
