"""Right batch-norm layers in NumPy: parameters, gradients and running statistics kept in many ways."""

import numpy as np


def closed(dy, xhat, rstd, gamma):
    dgamma, dbeta = (dy * xhat).sum(0), dy.sum(0)
    return gamma * rstd * (dy - dbeta / len(dy) - xhat * dgamma / len(dy)), dgamma, dbeta


class Attributes:
    """Parameters and gradients as attributes; a method for the mode."""

    def __init__(self, num_features, momentum=0.9, eps=1e-5):
        self.gamma, self.beta = np.ones(num_features), np.zeros(num_features)
        self.running_mean, self.running_var = np.zeros(num_features), np.ones(num_features)
        self.momentum, self.eps, self.training = momentum, eps, True

    def train(self):
        self.training = True

    def eval(self):
        self.training = False

    def forward(self, x):
        if not self.training:
            return self.gamma * (x - self.running_mean) / np.sqrt(self.running_var + self.eps) + self.beta
        mu, var = x.mean(0), x.var(0)
        self.rstd = 1 / np.sqrt(var + self.eps)
        self.xhat = (x - mu) * self.rstd
        self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mu
        self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var
        return self.gamma * self.xhat + self.beta

    def backward(self, dout):
        dx, self.dgamma, self.dbeta = closed(dout, self.xhat, self.rstd, self.gamma)
        return dx


class GivenParameters:
    """Constructed from gamma and beta; the running statistics come with the first call."""

    def __init__(self, gamma, beta, momentum=0.9, running_mean=None, running_var=None):
        self.gamma, self.beta, self.momentum = gamma, beta, momentum
        self.running_mean, self.running_var = running_mean, running_var

    def forward(self, x, train_flg=True):
        if self.running_mean is None:
            self.running_mean, self.running_var = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        if train_flg:
            mu, var = x.mean(axis=0), x.var(axis=0)
            self.running_mean = self.momentum * self.running_mean + (1 - self.momentum) * mu
            self.running_var = self.momentum * self.running_var + (1 - self.momentum) * var
        else:
            mu, var = self.running_mean, self.running_var
        self.rstd = (var + 1e-6) ** -0.5
        self.xhat = (x - mu) * self.rstd
        return self.gamma * self.xhat + self.beta

    def backward(self, dout):
        dx, self.dgamma, self.dbeta = closed(dout, self.xhat, self.rstd, self.gamma)
        return dx


class Dictionaries:
    """params and grads; constructed without arguments, made at the first call."""

    def __init__(self, momentum=0.9, epsilon=1e-5):
        self.momentum, self.epsilon = momentum, epsilon
        self.params, self.grads = {}, {}
        self.ready = False

    def forward(self, X, training=True):
        if not self.ready:
            n = X.shape[-1]
            self.params = {"scaler": np.random.rand(n), "intercept": np.zeros(n)}
            self.params |= {"running_mean": np.zeros(n), "running_var": np.ones(n)}
            self.ready = True
        p = self.params
        mean, var = (X.mean(0), X.var(0)) if training else (p["running_mean"], p["running_var"])
        if training:
            p["running_mean"] = self.momentum * p["running_mean"] + (1 - self.momentum) * mean
            p["running_var"] = self.momentum * p["running_var"] + (1 - self.momentum) * var
        self.rstd = 1 / np.sqrt(var + self.epsilon)
        self.N = (X - mean) * self.rstd
        return p["scaler"] * self.N + p["intercept"]

    def backward(self, dLdy):
        dx, dg, db = closed(dLdy, self.N, self.rstd, self.params["scaler"])
        self.grads = {"scaler": dg, "intercept": db}
        return dx


class Parameter:
    """A parameter with a gradient."""

    def __init__(self, data):
        self.data = data
        self.grad = np.zeros_like(data)


class Wrapped:
    """Parameters with .data and .grad; called."""

    def __init__(self, dim):
        self.gamma, self.beta = Parameter(np.ones(dim)), Parameter(np.zeros(dim))

    def __call__(self, x):
        self.rstd = 1 / np.sqrt(x.var(0) + 1e-5)
        self.xhat = (x - x.mean(0)) * self.rstd
        return self.gamma.data * self.xhat + self.beta.data

    def backward(self, grad):
        dx, dg, db = closed(grad, self.xhat, self.rstd, self.gamma.data)
        self.gamma.grad += dg
        self.beta.grad += db
        return dx


class Propagating:
    """fprop and bprop, with scales and biases."""

    def __init__(self, n_out):
        self.scales, self.biases = np.ones(n_out), np.zeros(n_out)
        self.rolling_mean, self.rolling_variance = np.zeros(n_out), np.zeros(n_out)

    def fprop(self, x, train=True):
        if not train:
            x = (x - self.rolling_mean) / np.sqrt(self.rolling_variance + 1e-5)
            return x * self.scales + self.biases
        self.rolling_mean = 0.99 * self.rolling_mean + 0.01 * x.mean(0)
        self.rolling_variance = 0.99 * self.rolling_variance + 0.01 * x.var(0)
        self.rstd = 1 / np.sqrt(x.var(0) + 1e-5)
        self.xhat = (x - x.mean(0)) * self.rstd
        return self.scales * self.xhat + self.biases

    def bprop(self, dout):
        dx, self.scales_grad, self.biases_grad = closed(dout, self.xhat, self.rstd, self.scales)
        return dx


class Passing:
    """forward_pass and backward_pass, which returns every gradient."""

    def __init__(self, size, eps=1e-3):
        self.weight, self.bias, self.eps = np.ones((1, size)), np.zeros((1, size)), eps

    def forward_pass(self, X, training=True):
        self.rstd = 1 / np.sqrt(X.var(0, keepdims=True) + self.eps)
        self.xhat = (X - X.mean(0, keepdims=True)) * self.rstd
        return self.weight * self.xhat + self.bias

    def backward_pass(self, accum_grad):
        return closed(accum_grad, self.xhat, self.rstd, self.weight)


class Cumulative:
    """The running statistics are the averages of all batches."""

    def __init__(self, num_features):
        self.gamma, self.beta = np.ones(num_features), np.zeros(num_features)
        self.running_mean, self.running_var = np.zeros(num_features), np.zeros(num_features)
        self.batches, self.training = 0, True

    def __call__(self, x):
        mean, var = self.running_mean, self.running_var
        if self.training:
            self.batches += 1
            mean, var = x.mean(0), x.var(0)
            self.running_mean = self.running_mean + (mean - self.running_mean) / self.batches
            self.running_var = self.running_var + (var - self.running_var) / self.batches
        return self.gamma * (x - mean) / np.sqrt(var + 1e-5) + self.beta


class Images:
    """Images; statistics with the axes of x."""

    def __init__(self, channels, eps=1e-5, momentum=0.1):
        shape = (1, channels, 1, 1)
        self.gamma, self.beta = np.ones(shape), np.zeros(shape)
        self.moving_mean, self.moving_var = np.zeros(shape), np.ones(shape)
        self.eps, self.momentum, self.is_training = eps, momentum, True

    def forward(self, x):
        mean, var = self.moving_mean, self.moving_var
        if self.is_training:
            mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            self.moving_mean = self.moving_mean + self.momentum * (mean - self.moving_mean)
            self.moving_var = self.moving_var + self.momentum * (var - self.moving_var)
        self.std = np.sqrt(var + self.eps)
        self.xhat = (x - mean) / self.std
        return self.gamma * self.xhat + self.beta

    def backward(self, dy):
        axes, m = (0, 2, 3), dy.size // dy.shape[1]
        self.dgamma = (dy * self.xhat).sum(axes, keepdims=True)
        self.dbeta = dy.sum(axes, keepdims=True)
        return self.gamma / self.std * (dy - self.dbeta / m - self.xhat * self.dgamma / m)


class Keras:
    """build and call, channels last, gradients returned in a dictionary."""

    def __init__(self, momentum=0.99, epsilon=1e-3):
        self.momentum, self.epsilon, self.gamma = momentum, epsilon, None

    def build(self, c):
        self.gamma, self.beta = np.ones(c), np.zeros(c)
        self.moving_mean, self.moving_variance = np.zeros(c), np.ones(c)

    def __call__(self, inputs, training=True):
        if self.gamma is None:
            self.build(inputs.shape[-1])
        axes = tuple(range(inputs.ndim - 1))
        mean, var = self.moving_mean, self.moving_variance
        if training:
            mean, var = inputs.mean(axes), inputs.var(axes)
            self.moving_mean = self.momentum * self.moving_mean + (1 - self.momentum) * mean
            self.moving_variance = self.momentum * self.moving_variance + (1 - self.momentum) * var
        return self.gamma * (inputs - mean) / np.sqrt(var + self.epsilon) + self.beta


class Plain:
    """No parameters."""

    def forward(self, x):
        self.rstd = 1 / np.sqrt(x.var(0) + 1e-5)
        self.xhat = (x - x.mean(0)) * self.rstd
        return self.xhat

    def backward(self, dy):
        return self.rstd * (dy - dy.mean(0) - self.xhat * (dy * self.xhat).mean(0))


CASES = {
    layer.__name__: (layer, None)
    for layer in (
        *(Attributes, GivenParameters, Dictionaries, Wrapped, Propagating, Passing),
        *(Cumulative, Images, Keras, Plain),
    )
}
