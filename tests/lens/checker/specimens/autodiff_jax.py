"""A forward in JAX over (N, H, W, C); its backward is jax.vjp's. Right."""

import jax.numpy as jnp
from jax import lax


def normalize_forward(inputs, scale, bias, epsilon=1e-3):
    """y over the last axis."""
    axes = tuple(range(inputs.ndim - 1))
    mean = jnp.mean(inputs, axis=axes)
    variance = jnp.mean(jnp.square(inputs - mean), axis=axes)
    return (inputs - mean) * lax.rsqrt(variance + epsilon) * scale + bias
