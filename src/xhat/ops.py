"""The gate: checks what comes in, finds its view, runs the kernels, and composes the five functions.

The formulas live in `equations` (and in the kernels, which are tested against them); no framework's arrays
and no state live here. Every array is NumPy's; all statistics are float64.
"""

import math
import os
from typing import Any

import numpy as np

from xhat import _kernels, layout
from xhat.checks import (
    Array,
    activation_of,
    channel_array,
    check_correction,
    check_count,
    check_eps,
    check_output,
    constants,
    dtype_code,
    floating,
    like_x,
    overlapping,
)
from xhat.decomposition import gradient_paths
from xhat.errors import EngineError
from xhat.layout import View
from xhat.operands import read, steps_of, view_for, write
from xhat.results import Context, Form, Gradients, Moments, check_backward, results_for
from xhat.weights import weights_for

__all__ = [
    "ACTIVATIONS",
    "SIDES",
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

# For a framework that checks its own tensors and hands over their addresses.
run_forward, run_backward, run_track = _kernels.forward, _kernels.backward, _kernels.track

# What the gate found of the calls that it let through: one that differs from such a call in its numbers alone is run
# from there. Where it is not, None is returned, and the gate looks at all of it.
CALLS = _kernels.Calls(np.ndarray, [np.dtype(n) for n in ("f8", "f4", "f2")], np.empty, np.empty_like)

# Numbered as in kernels.h.
ACTIVATIONS = {None: 0, "leaky_relu": 1, "silu": 2}
# How the backward finds where the activation stands: from x alone, or, with a residual, from y or the residual.
SIDES = {(None, False): 0, (None, True): 0, ("leaky_relu", False): 1, ("leaky_relu", True): 2, ("silu", False): 3,
         ("silu", True): 4}  # fmt: skip

Axis = int | tuple[int, ...]


# ------------------------------------------------------------------------------------------------------- forward


def moments(x: Any, *, axis: Axis = 1, mask: Any = None) -> Moments:
    """Count m = sum w, mean mu = sum w x / m and m2 = sum w (x - mu)^2 of each channel, in one read.

    x: any shape, float64, float32, float16 or bfloat16; axis: the channel axis or axes; mask: bool or weights
    that broadcast to x, of size 1 along the channels. Returns float64 moments of the channels' shape, that
    merge with those of other batches. An empty batch has count 0. Raises ShapeError, DtypeError, ArgumentError.
    """
    operation = "moments"
    x = floating(x, operation, "x")
    channels = layout.channel_axes(x.ndim, axis, operation)
    view = view_for(x, channels)
    weights, count, _ = weights_for(mask, operation, x, channels, view)
    shape = tuple(x.shape[a] for a in channels)
    mean, m2 = np.zeros(shape), np.zeros(shape)
    if x.size and count:
        _kernels.forward(True, False, dtype_code(x.dtype), view.shape, read(x, view), weights, None, None, None,
                         None, mean, m2, 1.0, 1.0, 0, 0.0)  # fmt: skip
    return Moments(count, mean, m2)


def batch_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = 1, eps: float = 1e-5, correction: int = 0,
    mask: Any = None, residual: Any = None, activation: Any = None, out: Array | None = None,
) -> tuple[Array, Context]:  # fmt: skip
    """y = act(gamma (x - mu) / sqrt(var + eps) + beta [+ residual]), with the batch's own mu and var.

        m = sum w     mu = sum w x / m     var = sum w (x - mu)^2 / (m - correction)

    x: any shape, float64, float32, float16 or bfloat16. gamma, beta: the channels' shape, x's dtype or wider
    (None: 1 and 0). axis: the channel axis, or a tuple of axes that are the channels together. mask: bool or
    non-negative weights w that broadcast to x with size 1 along the channels; it weighs the statistics, and every
    place of y is normalized. residual: as x, added before the activation. activation: None, "relu",
    ("leaky_relu", slope) or "silu". out: where to write y; it may be x itself when no gradient will be asked.

    Returns y (x's dtype and memory order) and the context that `batch_norm_backward` takes. Statistics are float64.
    The context holds x, and behind a residual and an activation y (relu) or the residual (silu), and no copy of them:
    they must not change before the backward pass.
    Layouts whose strides are an (outer, channel, inner) view run as they are (NCHW, NHWC, (N, C), channel first,
    most slices); any other array is copied once. An empty batch gives an empty y.

    Raises ShapeError, DtypeError, ArgumentError, OutputError; DegenerateBatchError where m <= correction or there
    is a single value per channel. The variance is a float64: |x - mu| of float64 must stay below about
    1e154 / sqrt(m), or it overflows. Source: Ioffe and Szegedy 2015, algorithm 1.
    """
    operation = "batch_norm"
    asked = (x, None, None, gamma, beta, residual, out, axis, eps, correction, activation)
    if mask is None and (ran := CALLS.forward(asked)):
        y, statistics, form, over = ran
        return y, form.context(x, statistics, None, y, residual, over)
    x = floating(x, operation, "x")
    channels = layout.channel_axes(x.ndim, axis, operation)
    eps, correction = check_eps(eps, operation), check_correction(correction, operation)
    view = view_for(x, channels)
    weights, count, values = weights_for(mask, operation, x, channels, view)
    if x.size:
        check_count(count, values, correction, operation, x.shape, masked=weights is not None)
    return _forward(operation, asked if mask is None else None, x, None, gamma, beta, channels, view, weights, count,
                    eps, correction, residual, activation, out)  # fmt: skip


def normalize_with_context(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = 1, eps: float = 1e-5,
    residual: Any = None, activation: Any = None, out: Array | None = None,
) -> tuple[Array, Context]:  # fmt: skip
    """As `normalize`, with a context for `batch_norm_backward`: mean and var are constants there (m is infinite)."""
    operation = "normalize"
    asked = (x, mean, var, gamma, beta, residual, out, axis, eps, None, activation)
    if mean is not None and var is not None and (ran := CALLS.forward(asked)):
        y, statistics, form, over = ran
        return y, form.context(x, statistics, None, y, residual, over)
    x = floating(x, operation, "x")
    channels = layout.channel_axes(x.ndim, axis, operation)
    eps = check_eps(eps, operation)
    fixed = constants(mean, var, operation, channels, x)
    return _forward(operation, asked, x, fixed, gamma, beta, channels, view_for(x, channels), None, math.inf,
                    eps, 0, residual, activation, out)  # fmt: skip


def normalize(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None, *, axis: Axis = 1, eps: float = 1e-5,
    residual: Any = None, activation: Any = None, out: Array | None = None,
) -> Array:  # fmt: skip
    """y = act(gamma (x - mean) / sqrt(var + eps) + beta [+ residual]), with given statistics (evaluation).

    mean, var: the channels' shape, any of the four dtypes, var at least 0; the other arguments, the result and
    what is raised are those of `batch_norm`.
    """
    y, _ = normalize_with_context(
        x, mean, var, gamma, beta, axis=axis, eps=eps, residual=residual, activation=activation, out=out
    )
    return y


def _forward(
    operation: str, asked: tuple[Any, ...] | None, x: Array, fixed: tuple[Array, Array] | None, gamma: Any, beta: Any,
    channels: tuple[int, ...], view: View, weights: Array | None, count: float, eps: float, correction: int,
    residual: Any, activation: Any, out: Array | None,
) -> tuple[Array, Context]:  # fmt: skip
    """Both forward passes after their own checks. `fixed`: mean and var, where they are not to be computed first."""
    kind, slope = activation_of(activation, operation)
    shape = tuple([x.shape[a] for a in channels])
    gamma = channel_array(gamma, operation, "gamma", shape, channels, x)
    beta = channel_array(beta, operation, "beta", shape, channels, x)
    # Copies: the context must not change with the caller's arrays.
    statistics = np.zeros((4, *shape))
    for row, value in enumerate((*(fixed or (None, None)), gamma, beta)):
        if value is not None:
            statistics[row] = value
    inputs = {"x": x}
    if residual is not None:
        residual = inputs["residual"] = like_x(residual, operation, "residual", x)
    if out is None:
        y = np.empty_like(x, subok=False)
    else:
        y = check_output(out, operation, "out", x, x, inputs)
    dtypes = None if gamma is None else gamma.dtype, None if beta is None else beta.dtype
    form = Form(x.shape, channels, view, count, eps, correction, kind, slope, residual is not None, dtypes)
    context = form.context(x, statistics, weights, y, residual, out is not None and overlapping(y, x))
    if x.size:
        _run_forward(asked, context, residual, y, batch=fixed is None)
    return y, context


def _run_forward(
    asked: tuple[Any, ...] | None, c: Context, residual: Array | None, y: Array, *, batch: bool
) -> None:
    """Runs moments and normalize, and remembers what was asked where no array had to be copied."""
    f, view = c.form, c.form.view
    source, extra, (target, place) = read(c.x, view), read(residual, view), write(y, view)
    code, divisor = dtype_code(c.x.dtype), f.count - f.correction if batch else 1.0
    kind = ACTIVATIONS[f.activation]
    _kernels.forward(batch, True, code, view.shape, source, c.weights, c.gamma, c.beta, extra, target, c.mean,
                     c.var, divisor, f.eps, kind, f.slope)  # fmt: skip
    if place is not y:
        y[...] = place
    if asked is not None and (steps := steps_of((c.x, residual, y), (source, extra, target))):
        CALLS.remember_forward(asked, f, c.statistics.shape, batch, code, view.shape, steps, divisor, f.eps, kind,
                               f.slope)  # fmt: skip


# ------------------------------------------------------------------------------------------------------ backward


def batch_norm_backward(dy: Any, context: Context, *, out: Any = None) -> Gradients:
    """The exact derivative of the forward pass that made the context.

        g  = dy act'(pre)      dbeta = sum g      dgamma = sum g xhat      dresidual = g
        dx = gamma rstd (g - w sum(g) / m - w xhat sum(g xhat) / (m - correction))

    dy: x's shape and dtype. out: where to write dx, which may be dy itself; or a pair (dx, dresidual).
    Returns Gradients(dx, dgamma, dbeta, dresidual): dx in x's dtype and memory order, dgamma and dbeta in the
    dtypes of gamma and beta, None where there was no such argument. Needs no memory of x's size but the results.

    Raises ContextError for a context that is none, or whose x was overwritten; ShapeError, DtypeError, OutputError.
    Source: Ioffe and Szegedy 2015, section 3, with the variance's own correction and weights.
    """
    operation = "batch_norm_backward"
    asked: tuple[Any, ...] | None = None
    if type(context) is Context and context.weights is None and not context.overwritten:
        places = out if type(out) is tuple and len(out) == 2 else (out, None)
        asked = (dy, context.x, context.extra, *places, context.statistics)
        if ran := CALLS.backward(asked, context.form):
            return Gradients(*ran)
    dy = check_backward(dy, context, operation)
    c = context
    dx, dresidual = results_for(out, dy, c, operation)
    sum_dy, sum_dy_xhat = np.zeros(c.mean.shape), np.zeros(c.mean.shape)
    if dresidual is not None and c.activation is None:  # before dx may be written over dy
        dresidual[...] = dy
    if c.x.size:
        _run_backward(asked, dy, c, dx, dresidual if c.activation else None, sum_dy, sum_dy_xhat)
    gamma_dtype, beta_dtype = c.parameter_dtypes
    return Gradients(
        dx,
        None if gamma_dtype is None else sum_dy_xhat.astype(gamma_dtype, copy=False),
        None if beta_dtype is None else sum_dy.astype(beta_dtype, copy=False),
        dresidual,
    )


def _run_backward(
    asked: tuple[Any, ...] | None, dy: Array, c: Context, dx: Array, dresidual: Array | None, sum_dy: Array,
    sum_dy_xhat: Array,
) -> None:  # fmt: skip
    """Runs gradient_sums and input_gradient, which also gives dresidual where that is not dy itself; remembers."""
    f, view = c.form, c.form.view
    source, gradient, extra = read(c.x, view), read(dy, view), read(c.extra, view)
    target, place = write(dx, view)
    second, second_place = (None, None) if dresidual is None else write(dresidual, view)
    code, divisor, side = dtype_code(c.x.dtype), f.count - f.correction, SIDES[f.activation, f.residual]
    _kernels.backward(True, True, code, view.shape, source, c.weights, c.gamma, c.beta, gradient, extra, target,
                      second, c.mean, c.var, sum_dy, sum_dy_xhat, f.count, divisor, f.eps, side, f.slope)  # fmt: skip
    if place is not dx:
        dx[...] = place
    if dresidual is not None and second_place is not dresidual:
        dresidual[...] = second_place
    arrays, operands = (c.x, dy, c.extra, dx, dresidual), (source, gradient, extra, target, second)
    if asked is not None and (f.activation or not f.residual) and (steps := steps_of(arrays, operands)):
        CALLS.remember_backward(asked, f, c.mean.shape, *f.parameter_dtypes, code, view.shape, steps, f.count,
                                divisor, f.eps, side, f.slope)  # fmt: skip


# -------------------------------------------------------------------------------------------------------- engine


def config() -> dict[str, Any]:
    """The version, the instruction set in use, those this machine can run (best first), and the threads of a call."""
    from importlib.metadata import version

    return {
        "version": version("xhat"),
        "isa": _kernels.isa(),
        "isa_available": _kernels.isa_available(),
        "threads": _kernels.threads(),
    }


def _use(isa: str | None) -> None:
    """Forces the instruction set that XHAT_ISA names. Raises EngineError where this machine can't run it."""
    if isa and not _kernels.use_isa(isa):
        raise EngineError(
            f"XHAT_ISA: got {isa!r}, expected one of {', '.join(_kernels.isa_available())}, or nothing."
        )


_use(os.environ.get("XHAT_ISA"))
