"""xhat and its derivative, which is the closed form: autodiff of sums far from zero would lose its digits.

A derivative is written as a tangent, once. JAX transposes it for reverse mode, and differentiates it again for higher
orders. What it transposes has no cancellation left.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from xhat import equations
from xhat.jax.moments import Batch, Moments

__all__ = ["centred", "standardized"]


def _is_zero(tangent: Any) -> bool:
    return tangent is None or isinstance(tangent, SymbolicZero)


def _zeros(v: Array) -> Array:
    """Zeros that vary over devices as v does, which JAX asks of a tangent in shard_map."""
    return jnp.where(False, v, 0)


def standardized(
    batch: Batch, eps: float, correction: int, x: Array, w: Array | None
) -> tuple[Array, Moments]:
    """xhat = (x - mu) rstd of x's shape, and the moments, which have size 1 along the batch's axes.

    On named axes, JAX's own autodiff differentiates the exchange: it would run a rule of ours later, where a name of
    vmap is no longer bound.
    """
    return (_closed if batch.name is None else _standardized)(batch, eps, correction, x, w)


def _standardized(
    batch: Batch, eps: float, correction: int, x: Array, w: Array | None
) -> tuple[Array, Moments]:
    found = batch.moments(x, w)
    var = equations.variance(found.m2, found.count, correction)
    rstd = equations.reciprocal_std(var, eps, jnp.sqrt)
    return equations.standardize(x - found.high, found.low, rstd), found


_closed = partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))(_standardized)


def _tangents(batch: Batch, eps: float, correction: int, primals: Any, tangents: Any) -> tuple[Any, Any]:
    """The tangents of xhat and of the moments, as sums of those along x and along w.

    along x    dxhat = rstd (dx - sum(w dx) / m - xhat sum(w xhat dx) / (m - c))
               dmu = sum(w dx) / m                        dm2 = 2 sum(w xhat dx) / rstd
    along w    dxhat = -sum(dw xhat) / m - xhat (sum(dw xhat^2) - var rstd^2 sum(dw)) / (2 (m - c))
               dmu = sum(dw xhat) / (m rstd)              dm2 = sum(dw xhat^2) / rstd^2          dm = sum(dw)

    The first is `input_gradient` of dx: the map from dx to dxhat is symmetric, up to the weights.
    """
    (x, w), (dx, dw) = primals, tangents
    xhat, found = _closed(batch, eps, correction, x, w)
    m, k = found.count, found.count - correction
    var = equations.variance(found.m2, m, correction)
    rstd = equations.reciprocal_std(var, eps, jnp.sqrt)
    dxhat, dm, dmu, dm2 = (_zeros(v) for v in (xhat, found.count, found.low, found.m2))
    if not _is_zero(dx):
        weighed = dx if w is None else w * dx
        sums = batch.totals(weighed, weighed * xhat)
        dxhat = equations.input_gradient(dx, xhat, *sums, rstd=rstd, m=m, correction=correction)
        dmu, dm2 = sums[0] / m, 2 * sums[1] / rstd
    if not _is_zero(dw):
        whole, first, second = batch.totals(*jnp.broadcast_arrays(dw, dw * xhat, dw * xhat**2))
        dm = batch.total(dw)
        dxhat = dxhat - first / m - xhat * (second - var * rstd**2 * whole) / (2 * k)
        dmu, dm2 = dmu + first / (m * rstd), dm2 + second / rstd**2
    return (xhat, found), (dxhat, Moments(dm, _zeros(found.high), dmu, dm2))


_closed.defjvp(_tangents, symbolic_zeros=True)


def centred(batch: Batch, z: Array, w: Array | None, m: Array) -> Array:
    """z - sum(w z) / m, which is z = gamma xhat itself.

    Its transpose takes the mean out of dy, on which dx and dgamma do not depend, before anything is multiplied. So an
    offset of dy costs no digits; on named axes it does.
    """
    return _centred(batch, z, w, m) if batch.name is None else z


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _centred(batch: Batch, z: Array, w: Array | None, m: Array) -> Array:
    return z


def _centred_tangent(batch: Batch, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (z, w, m), (dz, dw, _) = primals, tangents
    moved = _zeros(z) if _is_zero(dz) else dz
    parts = moved if w is None else w * moved
    if not _is_zero(dw):
        parts = parts + dw * z
    return _centred(batch, z, w, m), moved - batch.total(parts) / m


_centred.defjvp(_centred_tangent, symbolic_zeros=True)
