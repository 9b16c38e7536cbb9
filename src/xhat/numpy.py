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
    Array,
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


class BatchNorm:
    """Batch normalization with parameters, and with running moments for evaluation.

    ::

        y = act(gamma (x - mu) rstd + beta [+ residual])

        training      mu, var of this batch, and then, with k the momentum:
                      running_mean = (1 - k) running_mean + k mu
                      running_var  = (1 - k) running_var + k m2 / (m - running_correction)
        evaluation    mu = running_mean, var = running_var: constants in backward

    Parameters
    ----------
    num_features : int or tuple of int
        The number of channels; a tuple of numbers if axis is a tuple, in the order of the axes of x.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight k of the new batch, in [0, 1]. With 0 the running moments stay as they are. With None, k = 1 /
        updates, so that they are the plain average over the batches.
    affine : bool, default True
        Whether gamma and beta exist (ones and zeros at first).
    track_running : bool, default True
        Whether running moments exist (zeros and ones at first). Without them, evaluation uses the moments of its own
        batch.
    axis : int or tuple of int, default 1
        The channel axis of x, or several axes that are the channels together.
    correction : {0, 1}, default 0
        0 to normalize by ``m2 / m``, 1 to normalize by ``m2 / (m - 1)``.
    running_correction : {0, 1}, default 1
        The same choice for running_var.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        The function ``act``.
    dtype : {float32, float64}, default float32
        The dtype of parameters and running moments. In float32 a momentum below about 1e-6 is lost in rounding; float64
        keeps it.

    Attributes
    ----------
    gamma, beta : ndarray or None
        The parameters, in the shape num_features. None without affine.
    dgamma, dbeta : ndarray or None
        Their gradients after a backward pass.
    dresidual : ndarray or None
        The gradient with respect to the residual after a backward pass.
    running_mean, running_var : ndarray or None
        The running moments. None without track_running.
    updates : int
        The number of batches that the running moments have seen.
    context : Context or None
        The context of the last forward pass until it is differentiated, for `xhat.gradient_paths`.

    Raises
    ------
    ArgumentError
        If an option has no valid value.
    DtypeError
        If dtype is neither float32 nor float64.
    OptionError
        If the layer does not have an option of this name.

    Notes
    -----
    A NaN or an infinity in a batch reaches the running moments of its own channel, and stays there unless momentum is
    1. Check for it before you train on, or load an earlier state.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015.

    Examples
    --------
    >>> import numpy as np
    >>> from xhat.numpy import BatchNorm
    >>> layer = BatchNorm(2)
    >>> x = np.array([[1.0, -2.0], [2.0, 0.0], [6.0, 2.0]])
    >>> layer(x).round(3).tolist()
    [[-0.926, -1.225], [-0.463, 0.0], [1.389, 1.225]]
    >>> print(layer.running_mean, layer.running_var)
    [0.3 0. ] [1.6 1.3]

    One step of training:

    >>> dx = layer.backward(np.ones_like(x))
    >>> layer.beta -= 0.1 * layer.dbeta
    >>> print(layer.beta)
    [-0.3 -0.3]
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
        dtype: "npt.DTypeLike" = np.float32,
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
        """Normalize a batch, and update the running moments in training.

        ::

            y = act(gamma (x - mu) rstd + beta [+ residual])

        Parameters
        ----------
        x : array_like
            The batch: float64, float32, float16 or bfloat16, with num_features channels on the layer's axis.
        training : bool, default True
            True to use the moments of this batch, which the running moments then follow; False to use the running
            moments.
        mask : array_like, optional
            Bool, or weights of at least 0. It broadcasts to x and has size 1 along the channels. It weighs the moments
            of the batch, and so changes nothing where those are not used.
        residual : array_like, optional
            Added before the activation, in the shape and dtype of x.

        Returns
        -------
        ndarray
            The result y, in the shape, dtype and memory order of x. An empty batch gives an empty y and leaves the
            running moments as they are.

        Raises
        ------
        ShapeError
            If an array does not fit x, or if x has another number of channels.
        DtypeError
            If an array has another dtype.
        ArgumentError
            If an option or a weight has no valid value, or if running moments would overflow the dtype of the layer.
        DegenerateBatchError
            If the batch has a single value per channel, or too few values for correction or running_correction.

        Notes
        -----
        The layer keeps x (and the residual) for the backward pass until that is done or the next forward pass runs; an
        evaluation is such a forward pass too. x must not change before the backward pass, and nothing detects a
        change. If anything is raised, nothing has changed.

        Examples
        --------
        >>> import numpy as np
        >>> from xhat.numpy import BatchNorm
        >>> layer = BatchNorm(1, eps=1.0)
        >>> layer(np.array([[3.0], [5.0]]), training=False).round(4).tolist()
        [[2.1213], [3.5355]]
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
        """Differentiate the last forward pass, and store the gradients of the parameters.

        ::

            dgamma = sum dy xhat     dbeta = sum dy     dresidual = dy     past the activation

            training      dx = gamma rstd (dy - w sum dy / m - w xhat sum(dy xhat) / (m - c))
            evaluation    dx = gamma rstd dy

        Gradients are replaced, not accumulated. Each forward pass can be differentiated once; then the layer releases
        x.

        Parameters
        ----------
        dy : array_like
            The gradient with respect to y, in its shape and dtype.

        Returns
        -------
        ndarray
            The gradient dx with respect to the x of the last forward pass.

        Raises
        ------
        ContextError
            If there is no forward pass that has not been differentiated yet.
        ShapeError
            If dy does not have the shape of y.
        DtypeError
            If dy does not have the dtype of y.

        Examples
        --------
        >>> import numpy as np
        >>> from xhat.numpy import BatchNorm
        >>> layer = BatchNorm(1)
        >>> y = layer(np.array([[1.0], [2.0], [6.0]]))
        >>> layer.backward(np.array([[1.0], [0.0], [0.0]])).round(3).ravel().tolist()
        [0.176, -0.22, 0.044]
        >>> print(layer.dgamma.round(3), layer.dbeta)
        [-0.926] [1.]
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
        """Return copies of the arrays of this layer by their names.

        Returns
        -------
        dict of str to ndarray
            Those of gamma, beta, running_mean, running_var and updates that this layer has.

        Examples
        --------
        >>> from xhat.numpy import BatchNorm
        >>> sorted(BatchNorm(3, affine=False).state_dict())
        ['running_mean', 'running_var', 'updates']
        """
        return {name: np.array(value) for name, value in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a state into the arrays of this layer, rounded to its dtype.

        All of it is copied or, if anything is raised, nothing.

        Parameters
        ----------
        state : mapping of str to array_like
            What `state_dict` returns.

        Raises
        ------
        ArgumentError
            If a name is missing or unexpected, if a running_var or updates is negative, or if a value overflows the
            dtype of the layer.
        ShapeError
            If an array has another shape.
        DtypeError
            If an array is not of real floating-point numbers, or if updates is no integer.

        See Also
        --------
        xhat.convert_state : The state of another framework's layer by these names.

        Examples
        --------
        >>> import numpy as np
        >>> from xhat.numpy import BatchNorm
        >>> trained, layer = BatchNorm(1), BatchNorm(1)
        >>> y = trained(np.array([[1.0], [2.0], [6.0]]))
        >>> layer.load_state_dict(trained.state_dict())
        >>> print(layer.running_mean, layer.updates)
        [0.3] 1
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
