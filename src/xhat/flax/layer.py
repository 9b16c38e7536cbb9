"""What both of Flax's layers do in a call: they differ in where their arrays and statistics are kept.

No state lives here.
"""

from collections.abc import Iterable
from typing import Any

from jax import Array

from xhat.jax import inputs
from xhat.jax.functional import by_batch, by_statistics
from xhat.jax.moments import Moments
from xhat.plan import check_options

__all__ = ["normalized"]

OPERATION = "BatchNorm"


def normalized(
    layer: Any, x: Array, scale: Array | None, bias: Array | None, mean: Array, var: Array, mask: Any, *,
    by_running: bool, across_devices: bool = True,
) -> tuple[Array, Moments | None]:  # fmt: skip
    """y, in at least float32, and the moments of the batch, or None where running statistics are used.

    layer: axis, epsilon, axis_name and axis_index_groups. mask: bool or weights that broadcast to x; as in Flax, it may
    tell channels apart. It changes nothing where the statistics of the batch are not used.
    """
    o = check_options(OPERATION, layer.epsilon, 0, None)
    axis = tuple(layer.axis) if isinstance(layer.axis, Iterable) else layer.axis
    x, scale, bias = inputs.promoted(x, scale, bias)
    axes = inputs.check(OPERATION, axis, x, mean, var, scale, bias)
    if by_running:
        return by_statistics(x, axes, (mean, None), var, scale, bias, None, o), None
    name, groups = (layer.axis_name, layer.axis_index_groups) if across_devices else (None, None)
    batch = inputs.batch_of(OPERATION, axes, x.ndim, name, groups)
    mask = inputs.mask_for(mask, OPERATION, x, axes, per_channel=True)
    if across_devices:  # where a model is initialized, any batch will do
        inputs.check_batch(OPERATION, x, mask, batch, 0)
    return by_batch(inputs.weighed(x, mask, axes, x.dtype, per_channel=True), batch, scale, bias, None, o)
