"""The gate of NumPy's arrays: looks up the plan of a call, checks what the plan does not cover, and runs the kernels.

The formulas live in `equations` (and in the kernels, which are tested against them); no framework's arrays and no
state live here. All statistics are float64.
"""

import math
import os
import platform
from typing import Any, Never

import numpy as np

from xhat.checks import Array, check_kinds, check_variance, plain_array, refuse_options
from xhat.errors import ArgumentError, EngineError
from xhat.operands import check_output, overlapping, read, weights_for, write
from xhat.plan import Plan, find_plan, kernels, make_plan, saved_for_backward
from xhat.results import Context, Gradients, Moments, changed, check_backward, gradient_paths, results_for

__all__ = [
    "Context",
    "Gradients",
    "Moments",
    "batch_norm",
    "batch_norm_backward",
    "config",
    "gradient_paths",
    "moments",
    "normalize",
    "normalize_with_context",
    "run_backward",
    "run_forward",
    "run_track",
]

# For the gate of another framework, which checks its own tensors and passes their addresses.
run_forward, run_backward, run_track = kernels.forward, kernels.backward, kernels.track

Axis = int | tuple[int, ...]


# ------------------------------------------------------------------------------------------------------- forward


def moments(x: Any, *, axis: Axis = 1, mask: Any = None, **unknown: Never) -> Moments:
    """Compute count, mean and sum of squared deviations of each channel.

    ::

        m = sum w     mu = sum w x / m     m2 = sum w (x - mu)^2

    x is read once.

    Parameters
    ----------
    x : array_like
        The batch: any shape, float64, float32, float16 or bfloat16.
    axis : int or tuple of int, default 1
        The channel axis, or several axes that are the channels together.
    mask : array_like, optional
        Bool, or weights w of at least 0. It broadcasts to x and has size 1 along the channels. Without it, all weights
        are 1.

    Returns
    -------
    Moments
        Count, mean and m2 in float64. The arrays have the shape of the channels. An empty batch has count 0.

    Raises
    ------
    ShapeError
        If x has no such axis, or if the mask does not broadcast.
    DtypeError
        If x or the mask has a dtype that is not accepted.
    ArgumentError
        If a weight is negative or not finite.
    OptionError
        If the function does not have an option of this name.

    See Also
    --------
    Moments.merge : The moments of several batches together.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> found = xhat.moments(np.array([[1.0, 2.0], [3.0, 6.0]]))
    >>> found.count, found.mean.tolist(), found.m2.tolist()
    (2.0, [2.0, 4.0], [2.0, 8.0])
    """
    if unknown:
        refuse_options("moments", unknown)
    x = plain_array(x, "moments", "x")
    plan = _plan("moments", x, (None,) * 5, True, axis, 1.0, 0, None)
    weights, count = (None, plan.m) if mask is None else weights_for(mask, "moments", x, plan)
    shape = tuple(x.shape[a] for a in plan.axes)
    mean, m2 = np.zeros(shape), np.zeros(shape)
    if x.size and count:
        kernels.forward(True, False, plan.dtype, plan.view.shape, read(x, plan), weights, None, None, None, None, mean,
                         m2, 1.0, 1.0, 0, 0.0)  # fmt: skip
    return Moments(count, mean, m2)


def batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = 1, eps: float = 1e-5, correction: int = 0,
    mask: Any = None, residual: Any = None, activation: Any = None, out: Array | None = None, **unknown: Never,
) -> tuple[Array, Context]:  # fmt: skip
    """Normalize a batch by its own mean and variance.

    ::

        m   = sum w
        mu  = sum w x / m
        var = sum w (x - mu)^2 / (m - correction)
        y   = act(gamma (x - mu) / sqrt(var + eps) + beta [+ residual])

    Parameters
    ----------
    x : array_like
        The batch: any shape, float64, float32, float16 or bfloat16.
    gamma, beta : array_like, optional
        Scale and shift, in the shape of the channels and in the dtype of x or a wider one. They default to 1 and 0.
    axis : int or tuple of int, default 1
        The channel axis, or several axes that are the channels together.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    correction : {0, 1}, default 0
        0 to divide by m, 1 to divide by m - 1.
    mask : array_like, optional
        Bool, or weights w of at least 0. It broadcasts to x and has size 1 along the channels. It weighs the
        statistics; every element of x is normalized.
    residual : array_like, optional
        Added before the activation, in the shape and dtype of x.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        The function ``act``.
    out : ndarray, optional
        The array that y is written to. It may be x itself if no gradient is needed.

    Returns
    -------
    y : ndarray
        The result, in the shape, dtype and memory order of x. An empty batch gives an empty y.
    context : Context
        What `batch_norm_backward` needs. Its statistics are float64.

    Raises
    ------
    ShapeError
        If an array does not fit x, or if x has no such axis.
    DtypeError
        If an array has a dtype that is not accepted.
    ArgumentError
        If eps, correction, activation or a weight has no valid value.
    OptionError
        If the function does not have an option of this name.
    OutputError
        If ``out`` can't be written.
    DegenerateBatchError
        If m <= correction, or if there is a single value per channel.

    See Also
    --------
    normalize : The same with given statistics, for evaluation.
    xhat.numpy.BatchNorm : A layer with parameters and running statistics.

    Notes
    -----
    The context holds x itself, not a copy, and, with a residual and an activation, y (relu, leaky_relu) or the residual
    (silu). These arrays must not change before the backward pass, which reads them again. Nothing detects a change.

    Layouts whose strides are a view (outer, channel, inner) run as they are: NCHW, NHWC, (N, C), channel first and most
    slices. Any other array is copied once.

    The variance is a float64: with float64 input, ``|x - mu|`` must stay below about ``1e154 / sqrt(m)``, or it
    overflows.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015, algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> x = np.array([[1.0, -2.0], [2.0, 0.0], [6.0, 2.0]])
    >>> y, context = xhat.batch_norm(x, gamma=np.array([1.0, 2.0]), beta=np.zeros(2))
    >>> y.round(3).tolist()
    [[-0.926, -2.449], [-0.463, 0.0], [1.389, 2.449]]
    >>> xhat.batch_norm(x, activation="relu")[0].round(3).tolist()
    [[0.0, 0.0], [0.0, 0.0], [1.389, 1.225]]
    """
    if unknown:
        refuse_options("batch_norm", unknown)
    return _forward(
        "batch_norm", x, None, None, gamma, beta, axis, eps, correction, mask, residual, activation, out
    )


def normalize_with_context(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = 1, eps: float = 1e-5,
    residual: Any = None, activation: Any = None, out: Array | None = None,
) -> tuple[Array, Context]:  # fmt: skip
    """As `normalize`, with a context for `batch_norm_backward`: mean and var are constants there (m is infinite)."""
    if mean is None or var is None:
        raise ArgumentError("normalize: mean and var are needed, got None. batch_norm takes the batch's own.")
    return _forward("normalize", x, mean, var, gamma, beta, axis, eps, 0, None, residual, activation, out)


def normalize(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = 1, eps: float = 1e-5,
    residual: Any = None, activation: Any = None, out: Array | None = None, **unknown: Never,
) -> Array:  # fmt: skip
    """Normalize an array by a given mean and variance, as in evaluation.

    ::

        y = act(gamma (x - mean) / sqrt(var + eps) + beta [+ residual])

    Parameters
    ----------
    x : array_like
        The batch: any shape, float64, float32, float16 or bfloat16.
    mean, var : array_like
        The statistics, in the shape of the channels and any of the four dtypes. var must be at least 0.
    gamma, beta : array_like, optional
        Scale and shift, in the shape of the channels and in the dtype of x or a wider one. They default to 1 and 0.
    axis : int or tuple of int, default 1
        The channel axis, or several axes that are the channels together.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    residual : array_like, optional
        Added before the activation, in the shape and dtype of x.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        The function ``act``.
    out : ndarray, optional
        The array that y is written to. It may be x itself.

    Returns
    -------
    ndarray
        The result y, in the shape, dtype and memory order of x.

    Raises
    ------
    ShapeError
        If an array does not fit x, or if x has no such axis.
    DtypeError
        If an array has a dtype that is not accepted.
    ArgumentError
        If mean or var is None, if a variance is negative, or if eps or activation has no valid value.
    OptionError
        If the function does not have an option of this name.
    OutputError
        If ``out`` can't be written.

    See Also
    --------
    batch_norm : The same with the statistics of the batch.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> x = np.array([[1.0, 4.0], [3.0, 8.0]])
    >>> xhat.normalize(x, mean=[1.0, 4.0], var=[4.0, 16.0]).round(4).tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if unknown:
        refuse_options("normalize", unknown)
    y, _ = normalize_with_context(
        x, mean, var, gamma, beta, axis=axis, eps=eps, residual=residual, activation=activation, out=out
    )
    return y


def _forward(
    operation: str, x: Any, mean: Any, var: Any, gamma: Any, beta: Any, axis: Axis, eps: float, correction: int,
    mask: Any, residual: Any, activation: Any, out: Array | None,
) -> tuple[Array, Context]:  # fmt: skip
    """Both forward passes: with the batch's own statistics, or with those that are given."""
    x, mean, var, gamma, beta, residual = _arrays(operation, (x, mean, var, gamma, beta, residual))
    kinds = (mean if mean is None else (mean.shape, mean.dtype), var if var is None else (var.shape, var.dtype),
             gamma if gamma is None else (gamma.shape, gamma.dtype), beta if beta is None else (beta.shape, beta.dtype),
             residual if residual is None else (residual.shape, residual.dtype))  # fmt: skip
    plan = _plan(operation, x, kinds, mask is not None, axis, eps, correction, activation)
    weights, count = (None, plan.m) if mask is None else weights_for(mask, operation, x, plan)
    if var is not None:
        check_variance(operation, var)
    if out is None:
        y, overwritten = np.empty_like(x), False
    else:
        inputs = {"x": x} if residual is None else {"x": x, "residual": residual}
        y = check_output(out, operation, "out", x, x, inputs)
        overwritten = overlapping(y, x)
    # Copies, so that the context does not change with the caller's arrays.
    statistics = np.zeros(plan.statistics_shape)
    if mean is not None:
        statistics[0], statistics[1] = mean, var
    if gamma is not None:
        statistics[2] = gamma
    if beta is not None:
        statistics[3] = beta
    saved = saved_for_backward(plan.options.activation, y, residual)
    c = Context(x, statistics, weights, count, saved, overwritten, plan)
    if x.size:
        _run_forward(c, residual, y)
    return y, c


def _run_forward(c: Context, residual: Array | None, y: Array) -> None:
    """Runs moments, unless the statistics are given, and normalize."""
    plan, options = c.plan, c.plan.options
    mean, var, gamma, beta = c.statistics
    batch = c.count != math.inf
    target, place = write(y, plan)
    kernels.forward(batch, True, plan.dtype, plan.view.shape, read(c.x, plan), c.weights,
                     gamma if plan.parameter_dtypes[0] else None, beta if plan.parameter_dtypes[1] else None,
                     residual if residual is None else read(residual, plan), target, mean, var,
                     c.count - options.correction if batch else 1.0, options.eps, plan.activation,
                     options.slope)  # fmt: skip
    if place is not y:
        y[...] = place


def _plan(operation: str, x: Array, kinds: tuple[Any, ...], masked: bool, axis: Any, *options: Any) -> Plan:
    """The plan of a call with x; the rest are arguments of `make_plan`."""
    key = (check_kinds, operation, x.shape, x.dtype, x.strides, x.itemsize if x.flags.aligned else 0, kinds, masked,
           axis, *options)  # fmt: skip
    if type(axis) is int or (type(axis) is tuple and _INT.issuperset(map(type, axis))):
        return find_plan(*key)
    return make_plan(*key)


_INT = frozenset((int,))
_ARRAY_OR_NONE = frozenset((np.ndarray, type(None)))
_NAMES = ("x", "mean", "var", "gamma", "beta", "residual")


def _arrays(operation: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a forward pass as arrays; None stays None, except for x."""
    if given[0] is not None and _ARRAY_OR_NONE.issuperset(map(type, given)):
        return given
    return tuple(
        a if a is None and n != "x" else plain_array(a, operation, n)
        for n, a in zip(_NAMES, given, strict=True)
    )


# ------------------------------------------------------------------------------------------------------ backward


def batch_norm_backward(dy: Any, context: Context, *, out: Any = None, **unknown: Never) -> Gradients:
    """Compute the exact gradients of the forward pass that made the context.

    ::

        g         = dy act'(pre)
        dbeta     = sum g
        dgamma    = sum g xhat
        dresidual = g
        dx        = gamma rstd (g - w sum(g) / m - w xhat sum(g xhat) / (m - correction))

    Parameters
    ----------
    dy : array_like
        The gradient with respect to y, in the shape and dtype of x.
    context : Context
        The context that the forward pass returned.
    out : ndarray or tuple, optional
        The array that dx is written to, which may be dy itself, or a pair (dx, dresidual). An element of the pair may
        be None.

    Returns
    -------
    Gradients
        The gradients: dx in the dtype and memory order of x, dgamma and dbeta in the dtypes of gamma and beta, and
        dresidual. A gradient is None where the forward pass had no such argument.

    Raises
    ------
    ContextError
        If the context was not returned by a forward pass, if x was overwritten, or if a field was exchanged.
    ShapeError
        If dy does not have the shape of x.
    DtypeError
        If dy does not have the dtype of x.
    OutputError
        If ``out`` can't be written.
    OptionError
        If the function does not have an option of this name.

    See Also
    --------
    gradient_paths : The sum of three terms that dx is.

    Notes
    -----
    Apart from the results, no memory of the size of x is needed.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015, section 3; with the correction and the weights of the variance.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, context = xhat.batch_norm(x, gamma=np.ones(1), beta=np.zeros(1))
    >>> gradients = xhat.batch_norm_backward(np.array([[1.0], [0.0], [0.0]]), context)
    >>> gradients.dx.round(4).ravel().tolist()
    [0.1763, -0.2204, 0.0441]
    >>> gradients.dgamma.round(4).tolist(), gradients.dbeta.tolist()
    ([-0.9258], [1.0])
    """
    if unknown:
        refuse_options("batch_norm_backward", unknown)
    dy = check_backward(dy, context, "batch_norm_backward")
    try:
        return _gradients(dy, context, out)
    except Exception as error:
        raise changed("batch_norm_backward", error) from None


def _gradients(dy: Array, c: Context, out: Any) -> Gradients:
    plan = c.plan
    dx, dresidual = results_for(out, dy, c, "batch_norm_backward")
    sum_dy, sum_dy_xhat = np.zeros((2, *c.mean.shape))
    if dresidual is not None and not plan.activated_residual:  # before dx may be written over dy
        dresidual[...] = dy
    if c.x.size:
        _run_backward(dy, c, dx, dresidual if plan.activated_residual else None, sum_dy, sum_dy_xhat)
    gamma_dtype, beta_dtype = plan.parameter_dtypes
    return Gradients(
        dx,
        None if gamma_dtype is None else sum_dy_xhat.astype(gamma_dtype, copy=False),
        None if beta_dtype is None else sum_dy.astype(beta_dtype, copy=False),
        dresidual,
    )


def _run_backward(
    dy: Array, c: Context, dx: Array, dresidual: Array | None, sum_dy: Array, sum_dy_xhat: Array
) -> None:
    """Runs gradient_sums and input_gradient, which also writes dresidual where that is not dy itself."""
    plan, options = c.plan, c.plan.options
    target, place = write(dx, plan)
    second, second_place = (None, None) if dresidual is None else write(dresidual, plan)
    kernels.backward(True, True, plan.dtype, plan.view.shape, read(c.x, plan), c.weights, c.gamma, c.beta,
                      read(dy, plan), None if c.saved is None else read(c.saved, plan), target, second, c.mean, c.var,
                      sum_dy, sum_dy_xhat, c.count, c.count - options.correction, options.eps, plan.activation_grad,
                      options.slope)  # fmt: skip
    if place is not dx:
        dx[...] = place
    if dresidual is not None and second_place is not dresidual:
        dresidual[...] = second_place


# -------------------------------------------------------------------------------------------------------- engine


def config() -> dict[str, Any]:
    """Return what a report of a problem needs: the versions, and what the kernels use on this machine.

    Returns
    -------
    dict
        ``version``
            The version of xhat.
        ``isa``
            The instruction set in use.
        ``isa_available``
            The instruction sets that this machine can run, the best first.
        ``threads``
            The number of threads of a call.
        ``platform``
            The operating system and the processor.
        ``python``, ``numpy``
            Their versions.
        ``torch``
            The version of PyTorch; "none" if it is not installed.
        ``triton``
            The version of Triton, which kernels for GPUs need; "none" if it is not installed.

    Examples
    --------
    >>> import xhat
    >>> found = xhat.config()
    >>> found["isa"] in found["isa_available"]
    True
    """
    return {
        "version": _version("xhat", missing="unknown"),
        "isa": kernels.isa(),
        "isa_available": kernels.isa_available(),
        "threads": kernels.threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": _version("torch", missing="none"),
        "triton": _version("triton", missing="none"),
    }


def _version(package: str, missing: str) -> str:
    """The installed version; `missing` without an installation, such as where xhat runs from its sources."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return missing


def _use(isa: str | None) -> None:
    """Forces the instruction set that XHAT_ISA names. Raises EngineError where this machine can't run it."""
    if isa and not (isa.isascii() and kernels.use_isa(isa)):
        raise EngineError(
            f"XHAT_ISA: got {isa!r}, expected one of {', '.join(kernels.isa_available())}, or nothing."
        )


_use(os.environ.get("XHAT_ISA"))
