"""A layer that keeps its parameters, gradients and running statistics. Right."""

import numpy as np


class BatchNorm:
    """PyTorch's conventions, in NumPy."""

    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        self.gamma = np.ones(num_features)
        self.beta = np.zeros(num_features)
        self.running_mean = np.zeros(num_features)
        self.running_var = np.ones(num_features)
        self.eps, self.momentum, self.training = eps, momentum, True

    def forward(self, x):
        """y; updates the running statistics while training."""
        if not self.training:
            return self.gamma * (x - self.running_mean) / np.sqrt(self.running_var + self.eps) + self.beta
        n = len(x)
        mean, var = x.mean(0), x.var(0)
        self.running_mean = (1 - self.momentum) * self.running_mean + self.momentum * mean
        self.running_var = (1 - self.momentum) * self.running_var + self.momentum * var * n / (n - 1)
        self.rstd = 1 / np.sqrt(var + self.eps)
        self.xhat = (x - mean) * self.rstd
        return self.gamma * self.xhat + self.beta

    def backward(self, dout):
        """dx; the gradients of the parameters are kept."""
        self.dgamma, self.dbeta = (dout * self.xhat).sum(0), dout.sum(0)
        return self.gamma * self.rstd * (dout - dout.mean(0) - self.xhat * (dout * self.xhat).mean(0))
