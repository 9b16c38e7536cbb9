"""Batch normalization for Keras 3, on any of its backends, and the conversion of models that are there.

The equations run over `keras.ops`. All sums are taken about a rough mean, which cancels in the equations, and the
gradient loses a rough mean of its own: so an offset of x or of dy costs no digits, and automatic differentiation of
any order, by whichever backend, has no cancellation left.

State, options and checkpoints are those of `keras.layers.BatchNormalization` and must never differ from them.
"""

import math
from collections.abc import Iterator
from typing import Any

try:
    import keras
    from keras import ops
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"xhat.keras: {error.name} is not installed. Install Keras and a backend, and name the backend: pip install "
        "keras jax, and KERAS_BACKEND=jax in the environment; it may be torch, tensorflow or openvino as well.",
        name=error.name,
    ) from None

from xhat import equations
from xhat.errors import DtypeError, ShapeError

__all__ = ["BatchNormalization", "convert", "revert"]

# Numbers of float32 that no sum exceeds. A clip to them keeps compilers from contracting a division with a difference
# in some of the places that need both, and not in others: the quotient would be another number in each.
BOUNDS = -3e38, 3e38

# A tensor of the backend, or one of Keras's symbolic tensors.
Tensor = Any


@keras.saving.register_keras_serializable(package="xhat")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization for Keras: `keras.layers.BatchNormalization` with exact results and gradients.

    They are exact far from zero and under masks, too::

        y = gamma (x - mu) / sqrt(var + epsilon) + beta

        training     mu = sum w x / m     var = sum w (x - mu)^2 / m     of the batch, and then
                     moving_mean     += (1 - momentum) (mu - moving_mean)
                     moving_variance += (1 - momentum) (var - moving_variance)
        inference    mu = moving_mean     var = moving_variance

    The constructor, weights and their names, config and defaults are inherited; ``.weights.h5`` files load in both
    directions.

    Parameters
    ----------
    axis : int, default -1
        The channel axis.
    momentum : float, default 0.99
        The weight of the old moving statistics.
    epsilon : float, default 1e-3
        Added to the variance inside the square root.
    center, scale : bool, default True
        Whether the layer has beta and gamma.
    beta_initializer, gamma_initializer, ... : optional
        These and all other arguments are those of `keras.layers.BatchNormalization`.

    Raises
    ------
    ShapeError
        If a mask has another shape, and if x does not have this axis.
    DtypeError
        For complex numbers.

    Notes
    -----
    x is float32, float64, float16 or bfloat16, of any rank; 16 bits are computed in float32, float64 in float64. y has
    the compute dtype of the layer's policy.

    A mask has one dimension less than x, and broadcasts to x without its last axis. It is bool, or weights w >= 0,
    whose values are not checked. A channel of which nothing is included, and every channel of an empty batch, keeps
    its moving statistics bit for bit, and is normalized with mu = var = 0. Values that are not included and not finite
    give NaN in y, and nowhere else.

    Batch renormalization (``renorm``) and ``synchronized`` (of the TensorFlow backend) are Keras's own in training.

    Examples
    --------
    >>> import keras
    >>> import numpy as np
    >>> import xhat.keras
    >>> layer = xhat.keras.BatchNormalization(epsilon=1e-5, momentum=0.9)
    >>> y = layer(np.array([[1.0], [2.0], [6.0]], np.float32), training=True)
    >>> y, mean = map(keras.ops.convert_to_numpy, (y, layer.moving_mean))
    >>> print(y.round(3).ravel(), mean.round(3))
    [-0.926 -0.463  1.389] [0.3]
    """

    def build(self, input_shape: Any) -> None:
        """Add the weights that Keras's layer has: gamma, beta, moving_mean, moving_variance.

        Parameters
        ----------
        input_shape : tuple of int
            The shape of the inputs.

        Raises
        ------
        ShapeError
            If the inputs do not have the layer's axis.
        """
        rank = len(input_shape)
        if not -rank <= self.axis < rank:
            raise ShapeError(f"BatchNormalization: x {tuple(input_shape)} has no axis {self.axis}.")
        super().build(input_shape)

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """Normalize a batch; in training the moving statistics follow.

        Parameters
        ----------
        inputs : tensor
            The batch.
        training : bool, optional
            Whether to use the statistics of this batch.
        mask : tensor, optional
            Bool or weights, of the shape of the inputs without their last axis.

        Returns
        -------
        tensor
            The result y, in the shape of the inputs.
        """
        of_this_batch = training and self.trainable
        if of_this_batch and (self.renorm or self.synchronized):
            return super().call(inputs, training=training, mask=mask)
        check(inputs, mask)
        dtype = precision(inputs)
        x, axis = ops.cast(inputs, dtype), self.axis % len(inputs.shape)

        def along(vector: Tensor) -> Tensor:
            """A number per channel, broadcast against x."""
            return ops.reshape(ops.cast(vector, dtype), [-1 if a == axis else 1 for a in range(len(x.shape))])

        gamma = 1 if self.gamma is None else along(self.gamma)
        beta = 0 if self.beta is None else along(self.beta)
        mean, var = along(self.moving_mean), along(self.moving_variance)
        if of_this_batch:
            w = None if mask is None else weights(mask, x)
            y, m, *moments = normalize(x, w, gamma, beta, axis=axis, eps=self.epsilon)
            for running, old, new in zip(
                (self.moving_mean, self.moving_variance), (mean, var), moments, strict=True
            ):
                followed = ops.where(m > 0, equations.track(old, new, 1 - self.momentum), old)
                running.assign(ops.reshape(followed, (-1,)))
        else:
            y = equations.normalize(
                x, mean, equations.reciprocal_std(var, self.epsilon, ops.sqrt), gamma, beta
            )
        return ops.cast(y, self.compute_dtype)


def precision(x: Tensor) -> str:
    """What the equations are computed in: float32, or float64 for float64 and on the numpy backend.

    NumPy adds the rows of a matrix one after another, which costs digits in float32; JAX and torch add in blocks.
    """
    wide = keras.backend.backend() == "numpy" or keras.backend.standardize_dtype(x.dtype) == "float64"
    return "float64" if wide else "float32"


def check(x: Tensor, mask: Tensor | None) -> None:
    """Raises DtypeError for complex numbers, and ShapeError for a mask that is not one of x without its last axis."""
    for name, given in (("inputs", x), ("mask", mask)):
        if given is not None and "complex" in str(getattr(given, "dtype", "")):
            raise DtypeError(f"BatchNormalization: {name} has dtype {given.dtype}, expected real numbers.")
    if mask is None:
        return
    got, expected = tuple(mask.shape), tuple(x.shape)[:-1]
    if len(got) != len(expected):
        raise ShapeError(
            f"BatchNormalization: mask {got} has {len(got)} dimensions, expected {len(expected)} for inputs "
            f"{tuple(x.shape)}; the mask provided should be one dimension less than the inputs."
        )
    if any(a not in (1, b) and None not in (a, b) for a, b in zip(got, expected, strict=True)):
        raise ShapeError(
            f"BatchNormalization: mask {got} does not fit inputs {tuple(x.shape)}, expected {expected}, "
            "or 1 in any place."
        )


def weights(mask: Tensor, x: Tensor) -> Tensor:
    """The mask as weights w in x's shape and dtype."""
    return ops.broadcast_to(ops.expand_dims(ops.cast(mask, x.dtype), -1), ops.shape(x))


def normalize(
    x: Tensor, w: Tensor | None, gamma: Tensor, beta: Tensor, *, axis: int, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y = gamma xhat + beta by the batch's own moments, and m, mu and var, in shapes that broadcast against x.

    Where m is 0, mu and var are 0.
    """
    axes = [a for a in range(len(x.shape)) if a != axis]

    def total(v: Tensor) -> Tensor:
        return ops.sum(v, axes, keepdims=True)

    padding = None
    if w is None:
        shape = ops.shape(x)
        w, m = 1, ops.cast(math.prod(shape[a] for a in axes), x.dtype)
    else:
        m = total(w)
        padding = ops.logical_and(w == 0, ops.logical_not(ops.isfinite(x)))
        x = ops.where(padding, 0.0, x)  # 0 times NaN is NaN
    included = ops.where(m > 0, m, 1)
    rough = ops.stop_gradient(ops.clip(total(w * x) / included, *BOUNDS))
    x = x - rough
    mu, m2 = equations.moments(x, total, included, w)
    m2 = m2 + 0 * m2  # NaN where a square overflows: an infinite variance would hide x
    var = equations.variance(m2, included)
    z = equations.standardize(x, mu, gamma * equations.reciprocal_std(var, eps, ops.sqrt))
    # z = gamma xhat, and sum(w z) is 0 but for rounding. Through it the gradient loses its rough mean.
    y = z - ops.clip(total(w * z), *BOUNDS) / included + beta
    if padding is not None:
        y = ops.where(padding, math.nan, y)
    return y, m, rough + mu, var


def convert(model: keras.Layer) -> tuple[keras.Layer, list[str]]:
    r"""Turn Keras's batch norms in a model into xhat's, in place.

    Parameters
    ----------
    model : keras.Layer
        The model. Weights, names, the optimizer and the links of a functional model stay; what was compiled is compiled
        anew by the next ``fit``. Subclasses of Keras's layer are left.

    Returns
    -------
    model : keras.Layer
        The model itself.
    changes : list of str
        What was changed, one line for each layer.

    See Also
    --------
    revert : The other direction.

    Examples
    --------
    >>> import keras
    >>> import xhat.keras
    >>> model = keras.Sequential([keras.layers.BatchNormalization(name="norm")])
    >>> model, changes = xhat.keras.convert(model)
    >>> print(*changes, sep="\n")
    norm: keras.layers.BatchNormalization -> xhat.keras.BatchNormalization
    """
    return _change(model, keras.layers.BatchNormalization, BatchNormalization)


def revert(model: keras.Layer) -> tuple[keras.Layer, list[str]]:
    """Turn xhat's batch norms in a model into Keras's, in place.

    A ``.keras`` archive of the model then loads without xhat.

    Parameters
    ----------
    model : keras.Layer
        The model.

    Returns
    -------
    model : keras.Layer
        The model itself.
    changes : list of str
        What was changed, one line for each layer.

    Examples
    --------
    >>> import keras
    >>> import xhat.keras
    >>> model = keras.Sequential([keras.layers.BatchNormalization()])
    >>> model, changes = xhat.keras.convert(model)
    >>> model, changes = xhat.keras.revert(model)
    >>> type(model.layers[0]) is keras.layers.BatchNormalization
    True
    """
    return _change(model, BatchNormalization, keras.layers.BatchNormalization)


# Keras's class has the name of a private module.
NAMES: dict[type, str] = {
    keras.layers.BatchNormalization: "keras.layers.BatchNormalization",
    BatchNormalization: "xhat.keras.BatchNormalization",
}


def _change(model: Any, old: Any, new: Any) -> tuple[Any, list[str]]:
    """The layers of one class get the other: both have the same state, so the class is all that differs."""
    changes = []
    for layer in _layers(model):
        if type(layer) is old:
            # As an attribute of an object: Keras's own __setattr__ looks for weights in what is set.
            object.__setattr__(layer, "__class__", new)
            changes.append(f"{layer.path or layer.name}: {NAMES[old]} -> {NAMES[new]}")
    for trained in _layers(model):
        for function in ("train_function", "test_function", "predict_function"):
            if changes and hasattr(trained, function):
                setattr(trained, function, None)  # Keras compiles it anew
    return model, changes


def _layers(model: Any) -> Iterator[Any]:
    """The model and all layers in it, each once; Keras has no public name for it."""
    yield from model._flatten_layers()
