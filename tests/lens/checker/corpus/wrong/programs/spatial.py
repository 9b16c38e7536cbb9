"""Images in NCHW, flattened so that channels come last."""

import numpy as np


def spatial_batchnorm_forward(x, gamma, beta, eps=1e-5):
    N, C, H, W = x.shape
    flat = x.transpose(0, 2, 3, 1).reshape(-1, C)
    mu = flat.mean(axis=0)
    var = flat.var(axis=0)
    xhat = (flat - mu) / np.sqrt(var + eps)
    out = gamma.reshape(-1) * xhat + beta.reshape(-1)
    out = out.reshape(N, H, W, C).transpose(0, 3, 1, 2)
    return out, (xhat, gamma.reshape(-1), var, eps)


def spatial_batchnorm_backward(dout, cache):
    xhat, gamma, var, eps = cache
    N, C, H, W = dout.shape
    dflat = dout.transpose(0, 2, 3, 1).reshape(-1, C)
    m = N * H * W
    dgamma = (dflat * xhat).sum(axis=0)
    dbeta = dflat.sum(axis=0)
    scale = gamma / np.sqrt(var + eps)
    dx = scale * (dflat - dbeta / m - xhat * dgamma / m)
    dx = dx.reshape(N, H, W, C).transpose(0, 3, 1, 2)
    return dx, dgamma, dbeta
