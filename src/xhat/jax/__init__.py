"""Batch normalization for JAX: pure functions of its arrays, in plain JAX operations. The public names; no code."""

from xhat.jax.functional import batch_norm as batch_norm
from xhat.jax.functional import merge as merge
from xhat.jax.functional import moments as moments
from xhat.jax.functional import normalize as normalize
from xhat.jax.moments import Moments as Moments

__all__ = ["Moments", "batch_norm", "merge", "moments", "normalize"]
