"""The one-line closed form, with eps of its own and running statistics in a dictionary of options. Right."""

import numpy as np


def forward(x, gamma, beta, bn_param):
    """y, and what the backward needs; running statistics are updated in training."""
    eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    running_mean = bn_param.get("running_mean", np.zeros(x.shape[1]))
    running_var = bn_param.get("running_var", np.ones(x.shape[1]))
    if bn_param["mode"] == "test":
        return gamma * (x - running_mean) / np.sqrt(running_var + eps) + beta, None
    mean, var = x.mean(axis=0), x.var(axis=0)
    std = np.sqrt(var + eps)
    xhat = (x - mean) / std
    bn_param["running_mean"] = momentum * running_mean + (1 - momentum) * mean
    bn_param["running_var"] = momentum * running_var + (1 - momentum) * var
    return gamma * xhat + beta, (xhat, gamma, std)


def backward(dout, cache):
    """The closed form."""
    xhat, gamma, std = cache
    m = len(dout)
    dgamma, dbeta = (dout * xhat).sum(axis=0), dout.sum(axis=0)
    dx = gamma / (m * std) * (m * dout - dbeta - xhat * dgamma)
    return {"dx": dx, "dgamma": dgamma, "dbeta": dbeta}
