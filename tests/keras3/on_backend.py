"""Keras's layer and ours, run on whichever backend there is: arrays of NumPy in, float64 arrays out."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

import xhat.keras

__all__ = ["BACKEND", "KERAS", "XHAT", "Results", "built", "f64", "run", "trains"]

KERAS, XHAT = keras.layers.BatchNormalization, xhat.keras.BatchNormalization
BACKEND = keras.backend.backend()
trains = BACKEND != "numpy"  # that backend has no gradients and no fit


class Results(NamedTuple):
    """What a call gives: y and its gradients, and the moving statistics after it."""

    y: Any
    dx: Any
    dgamma: Any
    dbeta: Any
    mean: Any
    var: Any


def f64(tensor: Any) -> Any:
    """A tensor of the backend as an array."""
    return ops.convert_to_numpy(ops.convert_to_tensor(tensor)).astype(np.float64)


def built(kind: type, x: Any, gamma: Any = None, beta: Any = None, **options: Any) -> Any:
    """A layer for this x, with these parameters."""
    layer = kind(**options)
    layer.build(x.shape)
    for weight, value in ((layer.gamma, gamma), (layer.beta, beta)):
        if value is not None:
            weight.assign(value)
    return layer


def run(layer: Any, x: Any, dy: Any = None, training: bool = True, mask: Any = None) -> Results:
    """One call of a layer; with dy, its gradients, by the backend's automatic differentiation."""
    arguments = [None if a is None else ops.convert_to_tensor(a, str(a.dtype)) for a in (x, mask)]
    if dy is None and BACKEND == "jax":
        return run(layer, x, np.zeros_like(x), training, mask)._replace(
            dx=None, dgamma=None, dbeta=None
        )  # compiled
    if dy is None or not trains:
        y, gradients = layer(arguments[0], training=training, mask=arguments[1]), (None,) * 3
    else:
        y, *gradients = _WAYS[BACKEND](layer, *arguments, ops.convert_to_tensor(dy, str(dy.dtype)), training)
    statistics = layer.moving_mean, layer.moving_variance
    return Results(*(None if a is None else f64(a) for a in (y, *gradients, *statistics)))


def _on_jax(layer: Any, x: Any, mask: Any, dy: Any, training: bool) -> Any:
    trained, others = (
        [v.value for v in vs] for vs in (layer.trainable_variables, layer.non_trainable_variables)
    )
    y, dx, dtrained, others = _compiled(repr((type(layer), layer.get_config())), training)(
        layer, trained, others, x, mask, dy
    )
    for variable, value in zip(layer.non_trainable_variables, others, strict=True):
        variable.assign(value)
    return y, dx, *dtrained, *(None,) * (2 - len(dtrained))


@cache
def _compiled(kind: str, training: bool) -> Callable[..., Any]:
    """One function of jax.jit for all layers of one kind."""
    import jax

    first: list[Any] = []

    def gradients(trained: Any, others: Any, x: Any, mask: Any, dy: Any) -> Any:
        def call(trained: Any, x: Any) -> Any:
            return first[0].stateless_call(trained, others, x, training=training, mask=mask)

        y, pull, others = jax.vjp(call, trained, x, has_aux=True)
        dtrained, dx = pull(dy.astype(y.dtype))
        return y, dx, dtrained, others

    compiled = jax.jit(gradients)

    def of(layer: Any, *arguments: Any) -> Any:
        first[:] = [layer]
        return compiled(*arguments)

    return of


def _on_torch(layer: Any, x: Any, mask: Any, dy: Any, training: bool) -> Any:
    import torch

    x = x.detach().requires_grad_(True)
    y = layer(x, training=training, mask=mask)
    return y.detach(), *torch.autograd.grad(y, [x, layer.gamma.value, layer.beta.value], dy)


_WAYS = {"jax": _on_jax, "torch": _on_torch}
