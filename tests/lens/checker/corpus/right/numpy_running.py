"""Right batch norms in NumPy that keep running statistics: in options, in place, returned, in either shape."""

import numpy as np


def options_forward(x, gamma, beta, bn_param):
    mode, eps, momentum = bn_param["mode"], bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    shape = x.shape[1]
    mean = bn_param.get("running_mean", np.zeros(shape, dtype=x.dtype))
    var = bn_param.get("running_var", np.zeros(shape, dtype=x.dtype))
    if mode == "train":
        mu, sigma2 = x.mean(0), x.var(0)
        xhat = (x - mu) / np.sqrt(sigma2 + eps)
        mean, var = momentum * mean + (1 - momentum) * mu, momentum * var + (1 - momentum) * sigma2
        cache = (xhat, gamma, np.sqrt(sigma2 + eps))
    elif mode == "test":
        xhat, cache = (x - mean) / np.sqrt(var + eps), None
    else:
        raise ValueError(f"no mode {mode}")
    bn_param["running_mean"], bn_param["running_var"] = mean, var
    return gamma * xhat + beta, cache


def options_backward(dout, cache):
    xhat, gamma, std = cache
    dgamma, dbeta = (dout * xhat).sum(0), dout.sum(0)
    return gamma / std * (dout - dbeta / len(dout) - xhat * dgamma / len(dout)), dgamma, dbeta


def slow_options(x, gamma, beta, bn_params):
    m, v = bn_params["running_mean"], bn_params["running_var"]
    if bn_params["mode"] != "train":
        return gamma * (x - m) / np.sqrt(v + 1e-5) + beta
    bn_params["running_mean"] = 0.999 * m + 0.001 * x.mean(0)
    bn_params["running_var"] = 0.999 * v + 0.001 * x.var(0)
    return gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + beta


def in_place(x, weight, bias, moving_mean, moving_var, training=True, momentum=0.1, eps=1e-5):
    if not training:
        return weight * (x - moving_mean) / np.sqrt(moving_var + eps) + bias
    mean, var = x.mean(0), x.var(0)
    moving_mean += momentum * (mean - moving_mean)
    moving_var += momentum * (var * len(x) / (len(x) - 1) - moving_var)
    return weight * (x - mean) / np.sqrt(var + eps) + bias


def returned(x, gamma, beta, running_mean, running_var, training, decay=0.99, eps=1e-3):
    if training:
        mean, var = x.mean(0), x.var(0)
        running_mean = decay * running_mean + (1 - decay) * mean
        running_var = decay * running_var + (1 - decay) * var
    else:
        mean, var = running_mean, running_var
    return gamma * (x - mean) / np.sqrt(var + eps) + beta, running_mean, running_var


def dictionary(x, gamma, beta, running_mean, running_var, is_training=True):
    use = (x.mean(0), x.var(0)) if is_training else (running_mean, running_var)
    out = {"y": gamma * (x - use[0]) * (use[1] + 1e-4) ** -0.5 + beta}
    if is_training:
        out["running_mean"] = 0.9 * running_mean + 0.1 * use[0]
        out["running_var"] = 0.9 * running_var + 0.1 * use[1]
    return out


def wide_running(x, gamma, beta, bn_param):
    axes, wide = (0, 2, 3), (1, x.shape[1], 1, 1)
    mean, var = bn_param.get("running_mean", np.zeros(wide)), bn_param.get("running_var", np.ones(wide))
    if bn_param["mode"] == "train":
        mu, v = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        bn_param["running_mean"], bn_param["running_var"] = 0.9 * mean + 0.1 * mu, 0.9 * var + 0.1 * v
    else:
        mu, v = mean, var
    eps = bn_param.get("eps", 1e-5)
    return gamma.reshape(wide) * (x - mu) / np.sqrt(v + eps) + beta.reshape(wide)


def by_phase(x, gamma, beta, rolling_mean, rolling_variance, phase="train"):
    if phase == "train":
        mean, variance = x.mean(0), x.var(0)
        rolling_mean *= 0.95
        rolling_mean += 0.05 * mean
        rolling_variance *= 0.95
        rolling_variance += 0.05 * variance
    else:
        mean, variance = rolling_mean, rolling_variance
    return gamma * (x - mean) / np.sqrt(variance + 1e-6) + beta


def deterministic(x, scale, offset, pop_mean, pop_var, deterministic=False, epsilon=1e-4):
    if deterministic:
        return scale * (x - pop_mean) / np.sqrt(pop_var + epsilon) + offset
    mean, var = x.mean(0), x.var(0, ddof=1)
    pop_mean[:], pop_var[:] = 0.9 * pop_mean + 0.1 * mean, 0.9 * pop_var + 0.1 * var
    return scale * (x - mean) / np.sqrt(var + epsilon) + offset


def state_in_a_dictionary(x, gamma, beta, running_mean, running_var, training=True):
    mean, var = (x.mean(0), x.var(0)) if training else (running_mean, running_var)
    state = {"mean": running_mean, "var": running_var}
    if training:
        state = {"mean": 0.9 * running_mean + 0.1 * mean, "var": 0.9 * running_var + 0.1 * var}
    return gamma * (x - mean) / np.sqrt(var + 1e-5) + beta, state


def state_in_a_pair(x, gamma, beta, running_mean, running_var, training=True):
    y, state = state_in_a_dictionary(x, gamma, beta, running_mean, running_var, training)
    return y, (state["mean"], state["var"])


CASES = {
    "running statistics in a dictionary beside y": (state_in_a_dictionary, None),
    "running statistics in a pair beside y": (state_in_a_pair, None),
    "options": (options_forward, options_backward),
    "options with momentum 0.999": (slow_options, None),
    "running statistics in place": (in_place, None),
    "running statistics returned, momentum 0.99": (returned, None),
    "running statistics in a dictionary": (dictionary, None),
    "running statistics with the axes of x": (wide_running, None),
    "a phase": (by_phase, None),
    "deterministic evaluation": (deterministic, None),
}
