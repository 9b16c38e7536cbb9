"""The chain of the paper: dvar, dmu, and dx as a sum of three terms."""

import numpy as np


def forward(x, gamma, beta, eps):
    m = len(x)
    mu = x.mean(0)
    var = ((x - mu) ** 2).sum(0) / m
    xhat = (x - mu) / np.sqrt(var + eps)
    y = gamma * xhat + beta
    return y, {"x": x, "mu": mu, "var": var, "xhat": xhat, "gamma": gamma, "eps": eps}


def backward(dy, cache):
    x, mu, var, xhat, gamma, eps = (cache[k] for k in ("x", "mu", "var", "xhat", "gamma", "eps"))
    m = len(x)
    dxhat = dy * gamma
    dvar = (dxhat * (x - mu) * -0.5 * (var + eps) ** -1.5).sum(0)
    dmu = (-dxhat / np.sqrt(var + eps)).sum(0) + dvar * (-2 * (x - mu)).sum(0) / m
    dx = dxhat / np.sqrt(var + eps) + dvar * 2 * (x - mu) / m + dmu / m
    dgamma = (dy * xhat).sum(0)
    dbeta = dy.sum(0)
    return {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}
