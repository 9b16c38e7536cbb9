"""The shortest right pair: five lines forward, the closed form backward."""

from typing import Any

import numpy as np


def forward(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    """y, and xhat, gamma and rstd for the backward."""
    mu, var = x.mean(0), x.var(0)
    rstd = 1 / np.sqrt(var + eps)
    xhat = (x - mu) * rstd
    return gamma * xhat + beta, (xhat, gamma, rstd)


def backward(dout: Any, cache: Any) -> Any:
    """dx, dgamma, dbeta."""
    xhat, gamma, rstd = cache
    dgamma, dbeta = (dout * xhat).sum(0), dout.sum(0)
    return gamma * rstd * (dout - dbeta / len(dout) - xhat * dgamma / len(dout)), dgamma, dbeta
