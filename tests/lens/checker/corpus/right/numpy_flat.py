"""Right batch norms over (N, C) in NumPy: functions, closures and results in many styles."""

from typing import NamedTuple

import numpy as np


def two_lines(x, gamma, beta, eps=1e-5):
    return gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + eps) + beta


def bn_forward(X, scale, shift, epsilon=1e-3):
    batch = X.shape[0]
    center = X.sum(axis=0) / batch
    deviations = X - center
    spread = np.square(deviations).sum(axis=0) / batch
    inverse = np.power(spread + epsilon, -0.5)
    normal = deviations * inverse
    return scale * normal + shift, {"normal": normal, "inverse": inverse, "scale": scale}


def bn_backward(dY, saved):
    normal, inverse, scale = saved["normal"], saved["inverse"], saved["scale"]
    gradient = dY * scale
    dX = inverse * (gradient - gradient.mean(axis=0) - normal * np.mean(gradient * normal, axis=0))
    return {"dX": dX, "dscale": np.sum(dY * normal, axis=0), "dshift": np.sum(dY, axis=0)}


def hard_eps_forward(inputs, weight, bias):
    m = np.mean(inputs, axis=0, keepdims=True)
    v = np.mean((inputs - m) ** 2, axis=0, keepdims=True)
    s = np.sqrt(v + 2e-4)
    h = (inputs - m) / s
    return h * weight + bias, (h, s, weight)


def hard_eps_backward(grad_output, ctx):
    h, s, weight = ctx
    k = len(grad_output)
    dh = grad_output * weight
    grad_input = (k * dh - dh.sum(0) - h * (dh * h).sum(0)) / (k * s)
    return grad_input, (grad_output * h).sum(0), grad_output.sum(0)


def loops_forward(x, gamma, beta, eps=1e-5):
    n, c = x.shape
    y, xhat, stds = np.empty_like(x), np.empty_like(x), np.empty(c)
    for j in range(c):
        total = 0.0
        for i in range(n):
            total += x[i, j]
        mean = total / n
        square = 0.0
        for i in range(n):
            square += (x[i, j] - mean) ** 2
        stds[j] = (square / n + eps) ** 0.5
        for i in range(n):
            xhat[i, j] = (x[i, j] - mean) / stds[j]
            y[i, j] = gamma[j] * xhat[i, j] + beta[j]
    return y, (xhat, stds, gamma)


def loops_backward(dy, cache):
    xhat, stds, gamma = cache
    n, c = dy.shape
    dx, dgamma, dbeta = np.zeros_like(dy), np.zeros(c), np.zeros(c)
    for j in range(c):
        for i in range(n):
            dbeta[j] += dy[i, j]
            dgamma[j] += dy[i, j] * xhat[i, j]
        for i in range(n):
            inner = n * dy[i, j] - dbeta[j] - xhat[i, j] * dgamma[j]
            dx[i, j] = gamma[j] / (n * stds[j]) * inner
    return dx, dgamma, dbeta


class Saved(NamedTuple):
    """What a backward needs."""

    xhat: np.ndarray
    rstd: np.ndarray
    gamma: np.ndarray


class Gradients(NamedTuple):
    """Named gradients, dbeta first."""

    dbeta: np.ndarray
    dgamma: np.ndarray
    dx: np.ndarray


def named_forward(x, gamma, beta, eps):
    mu, var = x.mean(0), x.var(0)
    saved = Saved((x - mu) / np.sqrt(var + eps), 1 / np.sqrt(var + eps), gamma)
    return gamma * saved.xhat + beta, saved


def named_backward(dy, cache):
    dgamma, dbeta = np.einsum("nc,nc->c", dy, cache.xhat), np.einsum("nc->c", dy)
    dx = cache.gamma * cache.rstd * (dy - (dbeta + cache.xhat * dgamma) / len(dy))
    return Gradients(dbeta, dgamma, dx)


def unbiased_forward(x, gamma, beta, eps=1e-5):
    rstd = (x.var(axis=0, ddof=1) + eps) ** -0.5
    xhat = (x - x.mean(axis=0)) * rstd
    return gamma * xhat + beta, (xhat, rstd, gamma)


def unbiased_backward(dout, cache):
    xhat, rstd, gamma = cache
    n = dout.shape[0]
    dxhat = dout * gamma
    dx = rstd * (dxhat - dxhat.mean(0) - xhat * (dxhat * xhat).sum(0) / (n - 1))
    return dx, (dout * xhat).sum(0), dout.sum(0)


def outer_product_forward(x, gamma, beta, eps=1e-5):
    n = len(x)
    averaging = np.full((n, n), 1 / n)
    centred = x - averaging @ x
    rstd = np.diag((centred.T @ centred) / n + eps) ** -0.5
    return centred * rstd * gamma + beta, (centred, rstd, gamma)


def outer_product_backward(dy, cache):
    centred, rstd, gamma = cache
    n = len(dy)
    dx = np.empty_like(dy)
    for c in range(dy.shape[1]):
        h = centred[:, c] * rstd[c]
        jacobian = np.eye(n) - 1 / n - np.outer(h, h) / n
        dx[:, c] = gamma[c] * rstd[c] * jacobian @ dy[:, c]
    return dx, (dy * centred * rstd).sum(0), dy.sum(0)


def explicit_backward(dy, x, gamma, mean, var, eps):
    rstd = 1 / np.sqrt(var + eps)
    dxhat = dy * gamma
    dvar = (dxhat * (x - mean) * -0.5 * rstd**3).sum(0)
    dmean = -(dxhat * rstd).sum(0) - 2 * dvar * (x - mean).mean(0)
    dx = dxhat * rstd + dvar * 2 * (x - mean) / len(x) + dmean / len(x)
    return dx, (dy * (x - mean) * rstd).sum(0), dy.sum(0)


def whole_backward(dout, x, weight, eps=1e-5):
    mu, sigma = x.mean(0), np.sqrt(x.var(0) + eps)
    xh = (x - mu) / sigma
    dbias, dweight = dout.sum(0), (dout * xh).sum(0)
    return weight / sigma * (dout - dbias / len(x) - xh * dweight / len(x)), dweight, dbias


def closure():
    """A forward that keeps what its backward needs."""
    kept = {}

    def forward(x, gamma, beta, eps=1e-5):
        kept["sd"] = np.sqrt(x.var(0) + eps)
        kept["xh"] = (x - x.mean(0)) / kept["sd"]
        kept["gamma"] = gamma
        return gamma * kept["xh"] + beta

    def backward(dy):
        xh = kept["xh"]
        db, dg = dy.sum(0), (dy * xh).sum(0)
        return kept["gamma"] / kept["sd"] * (dy - db / len(dy) - xh * dg / len(dy)), dg, db

    return forward, backward


def with_relu(x, gamma, beta, eps=1e-5):
    mu, var = x.mean(0), x.var(0)
    rstd = 1 / np.sqrt(var + eps)
    xhat = (x - mu) * rstd
    pre = gamma * xhat + beta
    return np.where(pre > 0, pre, 0), (xhat, rstd, gamma, pre)


def with_relu_backward(dout, cache):
    xhat, rstd, gamma, pre = cache
    dy = np.where(pre > 0, dout, 0)
    dgamma, dbeta = (dy * xhat).sum(0), dy.sum(0)
    return gamma * rstd * (dy - dbeta / len(dy) - xhat * dgamma / len(dy)), dgamma, dbeta


def absolute_scale(x, weight, bias, eps=1e-5):
    return np.abs(weight) * (x - x.mean(0)) / np.sqrt(x.var(0) + eps) + bias


def zero_centred_scale(x, gamma, beta, eps=1e-6):
    return (1 + gamma) * (x - x.mean(0)) / np.sqrt(x.var(0) + eps) + beta


def leaky_after(x, gamma, beta, eps=1e-5):
    y = two_lines(x, gamma, beta, eps)
    return np.maximum(y, 0.1 * y)


def rows_forward(Z, gamma, beta, epsilon=1e-8):
    m = Z.shape[1]
    mu = np.sum(Z, axis=1, keepdims=True) / m
    var = np.sum((Z - mu) ** 2, axis=1, keepdims=True) / m
    normal = (Z - mu) / np.sqrt(var + epsilon)
    return gamma * normal + beta, (normal, np.sqrt(var + epsilon), gamma)


def rows_backward(dZ, cache):
    normal, sigma, gamma = cache
    m = dZ.shape[1]
    dgamma = np.sum(dZ * normal, axis=1, keepdims=True)
    dbeta = np.sum(dZ, axis=1, keepdims=True)
    return gamma / sigma * (dZ - dbeta / m - normal * dgamma / m), dgamma, dbeta


def without_parameters(x, eps=1e-5):
    return (x - x.mean(0)) / np.sqrt(x.var(0) + eps)


def gamma_alone(x, gamma, eps=1e-5):
    return gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + eps)


def single_precision(x, gamma, beta, eps=1e-5):
    x = x.astype(np.float32)
    y = (x - x.mean(0)) / np.sqrt(x.var(0) + np.float32(eps))
    return gamma.astype(np.float32) * y + beta.astype(np.float32)


def nested_forward(x, gamma, beta, eps=1e-5):
    rstd = 1 / np.sqrt(x.var(0) + eps)
    return gamma * ((x - x.mean(0)) * rstd) + beta, ((x - x.mean(0)) * rstd, rstd, gamma)


def nested_backward(dout, cache):
    xhat, rstd, gamma = cache
    parameters = (dout * xhat).sum(0), dout.sum(0)
    n = len(dout)
    return gamma * rstd * (dout - parameters[1] / n - xhat * parameters[0] / n), parameters


def keyed_backward(dout, cache):
    dx, (dgamma, dbeta) = nested_backward(dout, cache)
    return {"x": dx, "gamma": dgamma, "beta": dbeta}


CASES = {
    "two lines": (two_lines, None),
    "dictionaries": (bn_forward, bn_backward),
    "an eps of its own": (hard_eps_forward, hard_eps_backward),
    "loops": (loops_forward, loops_backward),
    "named tuples": (named_forward, named_backward),
    "the unbiased variance": (unbiased_forward, unbiased_backward),
    "matrices": (outer_product_forward, outer_product_backward),
    "a backward with explicit statistics": (None, explicit_backward),
    "a backward from x": (None, whole_backward),
    "closures": closure(),
    "relu inside": (with_relu, with_relu_backward),
    "the absolute value of gamma": (absolute_scale, None),
    "one plus gamma": (zero_centred_scale, None),
    "leaky relu after it": (leaky_after, None),
    "features in rows": (rows_forward, rows_backward),
    "no parameters": (without_parameters, None),
    "gamma alone": (gamma_alone, None),
    "float32 inside": (single_precision, None),
    "nested gradients": (nested_forward, nested_backward),
    "gradients by the names of what they are of": (nested_forward, keyed_backward),
}
