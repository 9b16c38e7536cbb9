"""Small functions that call one another."""

import numpy as np


def average(values):
    return values.sum(axis=0) / values.shape[0]


def inverse_root(var, eps):
    return (var + eps) ** -0.5


def centered(values):
    return values - average(values)


def project(values, direction):
    return direction * average(values * direction)


def batch_norm(x, gamma, beta, eps):
    variance = average(centered(x) ** 2)
    r = inverse_root(variance, eps)
    xhat = centered(x) * r
    return gamma * xhat + beta, (xhat, gamma, r)


def batch_norm_backward(dy, cache):
    xhat, gamma, r = cache
    dxhat = gamma * dy
    dx = r * (centered(dxhat) - project(dxhat, xhat))
    return dx, (dy * xhat).sum(axis=0), dy.sum(axis=0)
