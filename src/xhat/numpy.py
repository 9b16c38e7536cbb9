"""Batch normalization as a layer for NumPy: parameters, running moments, a forward and its exact backward.

Only state lives here: the arguments of `xhat.ops`, which computes, the context of the backward pass, and the update of
the running moments.
"""

from collections.abc import Mapping
from typing import Any, Never

import numpy as np
import numpy.typing as npt

from xhat import equations, ops
from xhat.errors import ContextError, DegenerateBatchError, ShapeError
from xhat.numpy_checks import (
    check_names,
    check_state,
    check_unknown,
    choice,
    features,
    layer_dtype,
    loaded_array,
    real,
    rounded,
)

__all__ = ["BatchNorm"]

Array = npt.NDArray[Any]


class BatchNorm:
    """Batch normalization with parameters gamma and beta, and running moments for evaluation.

        training      y = act(gamma (x - mu) rstd + beta [+ residual])       moments of this batch
        evaluation    the same with mu = running_mean, var = running_var    constants for the backward
        after each training batch, with k the momentum:
                      running_mean = (1 - k) running_mean + k mu
                      running_var  = (1 - k) running_var  + k m2 / (m - running_correction)

    num_features        Channels: an int, or a tuple of ints when axis is a tuple (in the order of x's axes).
    eps                 Added to the variance inside the square root.
    momentum            k, the weight of the new batch, in [0, 1]; 0 leaves the running moments as they are.
                        None: k = 1 / updates, so that they are the plain average over the batches.
    affine              Whether gamma and beta exist (ones and zeros at first).
    track_running       Whether running moments exist (zeros and ones at first). Without them, evaluation
                        uses the moments of its own batch.
    axis                The channel axis of x, or a tuple of them.
    correction          0: normalize by m2 / m; 1: by m2 / (m - 1).
    running_correction  The same choice for running_var.
    activation          None, "relu", ("leaky_relu", slope) or "silu".
    dtype               Of parameters and running moments: float32 or float64. In float32 a momentum below
                        about 1e-6 is lost in rounding; float64 keeps it.

    Attributes: gamma, beta, dgamma, dbeta (None without affine), running_mean, running_var (None without
    track_running), updates (batches that the running moments have seen), dresidual, and context: that of the
    last forward until it is differentiated, for `xhat.gradient_paths`. Train with
    ``layer.gamma -= rate * layer.dgamma``.

    A NaN or an infinity in a batch reaches the running moments of its own channel, and stays there unless
    momentum is 1: check for it before you train on, or load an earlier state. Raises ArgumentError, DtypeError.
    """

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running: bool = True,
        axis: int | tuple[int, ...] = 1,
        correction: int = 0,
        running_correction: int = 1,
        activation: Any = None,
        dtype: npt.DTypeLike = np.float32,
        **unknown: Never,
    ) -> None:
        check_unknown(unknown)
        self.num_features = features(num_features, axis)
        self.eps = real("eps", eps, "a finite number above 0", lambda v: 0 < v < np.inf)
        self.momentum = (
            None if momentum is None else real("momentum", momentum, "None or 0 to 1", lambda v: 0 <= v <= 1)
        )
        self.axis = axis
        self.correction = choice("correction", correction)
        self.running_correction = choice("running_correction", running_correction)
        self.activation = activation
        self.dtype = layer_dtype(dtype)
        shape = self.num_features
        self.gamma: Array | None = np.ones(shape, self.dtype) if affine else None
        self.beta: Array | None = np.zeros(shape, self.dtype) if affine else None
        self.running_mean: Array | None = np.zeros(shape, self.dtype) if track_running else None
        self.running_var: Array | None = np.ones(shape, self.dtype) if track_running else None
        self.updates = 0
        self.dgamma: Array | None = None
        self.dbeta: Array | None = None
        self.dresidual: Array | None = None
        self.context: ops.Context | None = None
        self._differentiated = False

    def forward(
        self, x: Array, *, training: bool = True, mask: Array | None = None, residual: Array | None = None
    ) -> Array:
        """y = act(gamma (x - mu) rstd + beta [+ residual]), in x's shape, dtype and memory order.

        x            The batch; float64, float32, float16 or bfloat16.
        training     True: moments of this batch, and the running moments follow. False: the running moments.
        mask         Bool or non-negative weights, broadcastable to x, 1 along the channels: they weigh the
                     moments of the batch, and so change nothing where those are not used.
        residual     Added before the activation; x's shape.

        The layer keeps x (and the residual) for the backward until that is done or the next forward runs; an evaluation
        is such a forward too. x must not change before the backward, and nothing detects a change.
        An empty batch gives an empty y and leaves the running moments as they are. When anything is raised,
        nothing has changed. Raises ShapeError, DtypeError, ArgumentError, and DegenerateBatchError when
        the batch has nothing to vary, or too few values for running_correction.
        """
        check_state(self)
        options: dict[str, Any] = {"axis": self.axis, "eps": self.eps, "activation": self.activation}
        # In float64, exactly: any dtype of x fits, and what is done to gamma before the backward does not matter.
        affine = [None if p is None else p.astype(np.float64) for p in (self.gamma, self.beta)]
        if training or self.running_mean is None:
            y, context = ops.batch_norm(
                x, *affine, correction=self.correction, mask=mask, residual=residual, **options
            )
        else:
            y, context = ops.normalize_with_context(
                x, self.running_mean, self.running_var, *affine, residual=residual, **options
            )
        self._check_features(context)
        if training and self.running_mean is not None and context.count > 0:
            self._track(context)
        self.context, self._differentiated = context, False
        return y

    __call__ = forward

    def backward(self, dy: Array) -> Array:
        """dx, the gradient of the loss with respect to the x of the last forward; stores the others.

            dgamma = sum dy xhat         dbeta = sum dy         dresidual = dy, each past the activation
            dx = gamma rstd (dy - w sum_dy / m - w xhat sum_dy_xhat / (m - c))     after training
            dx = gamma rstd dy                                                    after evaluation

        dy has the shape of y. Gradients are replaced, not accumulated. Each forward can be differentiated
        once, and x is let go. Raises ContextError without a forward, ShapeError and DtypeError.
        """
        if self.context is None:
            raise ContextError(
                "BatchNorm.backward: the last forward was already differentiated, call forward again."
                if self._differentiated
                else "BatchNorm.backward: there is no forward to differentiate, call forward first."
            )
        grads = ops.batch_norm_backward(dy, self.context)
        self.dgamma, self.dbeta = (None if d is None else d.astype(self.dtype) for d in grads[1:3])
        self.dresidual = grads.dresidual
        self.context, self._differentiated = None, True
        return grads.dx

    def state_dict(self) -> dict[str, Array]:
        """Copies of gamma, beta, running_mean, running_var and updates, of those that this layer has."""
        return {name: np.array(value) for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a state into this layer's arrays, rounding to its dtype; all of it or, on an error, nothing.

        Raises ArgumentError for a missing or unexpected name, a negative running_var or updates, or a value
        that overflows the layer's dtype; ShapeError; DtypeError for anything but real floating arrays (and
        an integer for updates).
        """
        own = self._state()
        check_names(state, own)
        with np.errstate(over="ignore"):
            loaded = {name: loaded_array(name, state[name], own[name]) for name in own}
        for name, value in loaded.items():
            if name == "updates":
                self.updates = int(value)
            else:
                own[name][...] = value

    def __repr__(self) -> str:
        features = self.num_features[0] if len(self.num_features) == 1 else self.num_features
        names = ("eps", "momentum", "axis", "correction", "running_correction", "activation")
        options = "".join(f", {name}={getattr(self, name)!r}" for name in names)
        affine, tracked = self.gamma is not None, self.running_mean is not None
        return f"BatchNorm({features}{options}, affine={affine}, track_running={tracked}, dtype={self.dtype})"

    def _state(self) -> dict[str, Array]:
        named = {
            "gamma": self.gamma,
            "beta": self.beta,
            "running_mean": self.running_mean,
            "running_var": self.running_var,
            "updates": None if self.running_mean is None else np.array(self.updates),
        }
        return {name: value for name, value in named.items() if value is not None}

    def _check_features(self, context: ops.Context) -> None:
        """Raises ShapeError for a wrong number of channels, also where there are no parameters and running moments."""
        if context.mean.shape != self.num_features:
            raise ShapeError(
                f"BatchNorm.forward: x {context.x.shape} has {context.mean.shape} channels on axis {self.axis}"
                f", expected {self.num_features}."
            )

    def _track(self, context: ops.Context) -> None:
        """Running moments follow this batch: in float64, rounded to the layer's dtype once, or not at all."""
        m, c = context.count, self.running_correction
        if m <= c:
            raise DegenerateBatchError(
                f"BatchNorm.forward: the batch has m = {m:g}, expected more than running_correction={c} for "
                "the running variance; pass running_correction=0, or more (or larger) weights."
            )
        weight = 1 / (self.updates + 1) if self.momentum is None else self.momentum
        var = context.var * ((m - context.plan.options.correction) / (m - c))
        with np.errstate(over="ignore", invalid="ignore"):
            mean = _followed("running_mean", self.running_mean, context.mean, weight)
            var = _followed("running_var", self.running_var, var, weight)
        self.running_mean, self.running_var = mean, var
        self.updates += 1


def _followed(name: str, old: Array | None, batch: Array, weight: float) -> Array:
    """(1 - k) old + k batch; at k = 0 and k = 1 the other term is left out, since 0 times NaN is NaN."""
    assert old is not None
    if weight == 0:
        return old
    moved = batch if weight == 1 else equations.track(old, batch, weight)
    return rounded("BatchNorm.forward", name, moved, old.dtype)
