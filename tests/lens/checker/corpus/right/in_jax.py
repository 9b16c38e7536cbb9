"""Right batch norms in JAX: functions, custom gradients, functional state."""

import jax
import jax.numpy as jnp


def function(x, gamma, beta, eps=1e-5):
    return gamma * (x - x.mean(0)) * jax.lax.rsqrt(x.var(0) + eps) + beta


def channels_last(x, scale, bias):
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    var = jnp.square(x - mean).mean(axes)
    return scale * (x - mean) / jnp.sqrt(var + 1e-3) + bias


@jax.custom_vjp
def custom(x, gamma, beta):
    return custom_fwd(x, gamma, beta)[0]


def custom_fwd(x, gamma, beta):
    r = jax.lax.rsqrt(x.var(0) + 1e-5)
    xhat = (x - x.mean(0)) * r
    return gamma * xhat + beta, (xhat, r, gamma)


def custom_bwd(res, g):
    xhat, r, gamma = res
    dbeta, dgamma = g.sum(0), (g * xhat).sum(0)
    return gamma * r * (g - dbeta / len(g) - xhat * dgamma / len(g)), dgamma, dbeta


custom.defvjp(custom_fwd, custom_bwd)


def with_state(x, gamma, beta, running_mean, running_var, training=True):
    if training:
        mean, var = x.mean(0), x.var(0)
        running_mean = 0.99 * running_mean + 0.01 * mean
        running_var = 0.99 * running_var + 0.01 * var
    else:
        mean, var = running_mean, running_var
    y = gamma * (x - mean) * jax.lax.rsqrt(var + 1e-5) + beta
    return y, running_mean, running_var


CASES = {
    "a function": (function, None),
    "channels last": (channels_last, None),
    "a custom gradient": (custom, None),
    "its two passes": (custom_fwd, custom_bwd),
    "functional state": (with_state, None),
}
