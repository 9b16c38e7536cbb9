"""Right batch norms over images, sequences and volumes in NumPy, channels first and last."""

import numpy as np


def last_forward(x, gamma, beta, eps=1e-3):
    mu, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    rstd = 1 / np.sqrt(var + eps)
    xhat = (x - mu) * rstd
    return gamma * xhat + beta, (xhat, rstd, gamma)


def last_backward(dout, cache):
    xhat, rstd, gamma = cache
    axes = (0, 1, 2)
    return (
        gamma * rstd * (dout - dout.mean(axes) - xhat * (dout * xhat).mean(axes)),
        (dout * xhat).sum(axes),
        dout.sum(axes),
    )


def last_alone(x, gamma, beta):
    mu, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return gamma * (x - mu) / np.sqrt(var + 1e-5) + beta


def flat_forward(x, gamma, beta, eps=1e-5):
    mu = np.average(x, axis=0)
    centred = x - mu
    std = np.sqrt(np.average(centred * centred, axis=0) + eps)
    return gamma * centred / std + beta, (centred / std, std, gamma)


def flat_backward(dout, cache):
    xhat, std, gamma = cache
    n = len(dout)
    dbeta, dgamma = dout.sum(0), (dout * xhat).sum(0)
    return gamma / std / n * (n * dout - dbeta - xhat * dgamma), dgamma, dbeta


def spatial_forward(x, gamma, beta, eps=1e-5):
    n, c, h, w = x.shape
    rows = x.transpose(0, 2, 3, 1).reshape(-1, c)
    y, cache = flat_forward(rows, gamma, beta, eps)
    return y.reshape(n, h, w, c).transpose(0, 3, 1, 2), cache


def spatial_backward(dout, cache):
    n, c, h, w = dout.shape
    dx, dgamma, dbeta = flat_backward(np.moveaxis(dout, 1, -1).reshape(n * h * w, c), cache)
    return np.moveaxis(dx.reshape(n, h, w, c), -1, 1), dgamma, dbeta


def swapped_forward(x, gamma, beta, eps=1e-5):
    rows = x.swapaxes(0, 1).reshape(x.shape[1], -1)
    mean, std = rows.mean(1, keepdims=True), np.sqrt(rows.var(1, keepdims=True) + eps)
    xhat = (rows - mean) / std
    y = xhat * gamma[:, None] + beta[:, None]
    shape = (x.shape[1], x.shape[0], *x.shape[2:])
    return y.reshape(shape).swapaxes(0, 1), (xhat, std, gamma, shape)


def swapped_backward(dy, cache):
    xhat, std, gamma, shape = cache
    rows = dy.swapaxes(0, 1).reshape(shape[0], -1)
    m = rows.shape[1]
    db, dg = rows.sum(1), (rows * xhat).sum(1)
    dx = gamma[:, None] / std * (rows - db[:, None] / m - xhat * dg[:, None] / m)
    return dx.reshape(shape).swapaxes(0, 1), dg, db


def kept_axes_forward(x, weight, bias, eps=1e-5):
    axes = (0, 2, 3)
    mean = x.mean(axis=axes, keepdims=True)
    var = ((x - mean) ** 2).mean(axis=axes, keepdims=True)
    return weight * (x - mean) / np.sqrt(var + eps) + bias, (x - mean, np.sqrt(var + eps), weight)


def kept_axes_backward(grad_output, saved):
    centred, std, weight = saved
    axes, m = (0, 2, 3), grad_output.size // grad_output.shape[1]
    xhat = centred / std
    grad_weight = (grad_output * xhat).sum(axis=axes, keepdims=True)
    grad_bias = grad_output.sum(axis=axes, keepdims=True)
    return weight / std * (grad_output - grad_bias / m - xhat * grad_weight / m), grad_weight, grad_bias


def sequence(x, gamma, beta, eps=1e-5):
    n, length = len(x), x.shape[2]
    mu = x.sum(axis=(0, 2)) / (n * length)
    var = ((x - mu[:, None]) ** 2).sum(axis=(0, 2)) / (n * length)
    return gamma[:, None] * (x - mu[:, None]) / np.sqrt(var + eps)[:, None] + beta[:, None]


def tokens(x, gamma, beta, eps=1e-5):
    n, length, c = x.shape
    rows = x.reshape(n * length, c)
    return (gamma * (rows - rows.mean(0)) / np.sqrt(rows.var(0) + eps) + beta).reshape(n, length, c)


def volumes(x, gamma, beta, eps=1e-5):
    c = x.shape[1]
    mu = x.mean(axis=(0, 2, 3, 4)).reshape(1, c, 1, 1, 1)
    var = x.var(axis=(0, 2, 3, 4)).reshape(1, c, 1, 1, 1)
    wide = (1, c, 1, 1, 1)
    return gamma.reshape(wide) * (x - mu) / np.sqrt(var + eps) + beta.reshape(wide)


def volumes_last(x, gamma, beta, eps=1e-3):
    n, d, h, w, c = x.shape
    rows = x.reshape(-1, c)
    y = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + eps)
    return (y * gamma + beta).reshape(n, d, h, w, c)


def either(x, gamma, beta, eps=1e-5):
    axes = tuple(a for a in range(x.ndim) if a != 1)
    wide = [1, -1, *([1] * (x.ndim - 2))]
    mu, var = x.mean(axes).reshape(wide), x.var(axes).reshape(wide)
    return gamma.reshape(wide) * (x - mu) / np.sqrt(var + eps) + beta.reshape(wide)


def channel_by_channel(x, gamma, beta, eps=1e-5):
    y = np.zeros_like(x)
    for c in range(x.shape[1]):
        plane = x[:, c, :, :]
        y[:, c, :, :] = gamma[c] * (plane - plane.mean()) / np.sqrt(plane.var() + eps) + beta[c]
    return y


CASES = {
    "channels last": (last_forward, last_backward),
    "channels last, forward alone": (last_alone, None),
    "flattened images": (spatial_forward, spatial_backward),
    "channels in front": (swapped_forward, swapped_backward),
    "wide parameters": (kept_axes_forward, kept_axes_backward),
    "sequences": (sequence, None),
    "tokens": (tokens, None),
    "volumes": (volumes, None),
    "volumes, channels last": (volumes_last, None),
    "any number of axes": (either, None),
    "channel by channel": (channel_by_channel, None),
}
