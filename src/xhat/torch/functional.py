"""The gate of PyTorch's tensors: checks what comes in, and chooses the way that the active transform can follow.

autograd, cpu   plain CPU tensors in eager mode: by address to the kernels
operators       while a graph is recorded: one operator
composed        everything else: the equations over torch's operations
"""

import math
from operator import is_
from typing import Any, Never

import torch
from torch import Tensor

from xhat.checks import refuse_options
from xhat.errors import ArgumentError
from xhat.plan import Plan, check_options, constant
from xhat.torch import composed, cpu, operators
from xhat.torch.autograd import normalize
from xhat.torch.cpu import Run, plan_for
from xhat.torch.engines import engine_for
from xhat.torch.errors import TensorShapeError, TensorTypeError
from xhat.torch.inputs import (
    CODES,
    Batch,
    Inputs,
    Moving,
    check_inputs,
    check_nonfinite,
    check_tensor,
    check_weights,
)
from xhat.torch.internals import (
    SameKind,
    differentiating_forward,
    eager,
    on_a_device,
    recomputing,
    tracing,
    transforming,
    unrecorded,
)
from xhat.torch.memory import check_memory
from xhat.torch.running_stats import Following, Running, kernels, move, track

__all__ = ["batch_norm", "follow", "normalized"]

Maybe = Tensor | None


def batch_norm(
    input: Tensor, running_mean: Maybe, running_var: Maybe, weight: Maybe = None, bias: Maybe = None,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, *, residual: Maybe = None, mask: Maybe = None,
    correction: int = 0, running_correction: int = 1, activation: Any = None, nonfinite: str = "propagate",
    **unknown: Never,
) -> Tensor:  # fmt: skip
    """Normalize a batch: `torch.nn.functional.batch_norm` with more options.

    ::

        y = act(weight (x - mu) / sqrt(var + eps) + bias [+ residual])

        training     mu = sum w x / m     var = sum w (x - mu)^2 / (m - correction)
                     of this batch, and then, with v = sum w (x - mu)^2 / (m - running_correction):
                     running_mean += momentum (mu - running_mean)
                     running_var  += momentum (v - running_var)
        else         mu = running_mean    var = running_var

    Parameters
    ----------
    input : torch.Tensor
        The batch (N, C, ...): float64, float32, float16 or bfloat16, any strides.
    running_mean, running_var : torch.Tensor or None
        The running statistics (C,), of any of these dtypes. They are needed in evaluation, and updated in training.
    weight, bias : torch.Tensor, optional
        Scale and shift (C,), of any of these dtypes. They default to 1 and 0.
    training : bool, default False
        True to use the statistics of this batch.
    momentum : float, default 0.1
        The weight of this batch in the running statistics.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    residual : torch.Tensor, optional
        Added before the activation, in the shape and dtype of the input.
    mask : torch.Tensor, optional
        Bool, or weights w of at least 0. It broadcasts to the input and has size 1 along the channels (dimension 1). It
        weighs the statistics.
    correction : {0, 1}, default 0
        What the batch's variance divides by is m - correction; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        The function ``act``.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN or infinity does to the running statistics: it moves them, as in torch; its channels stay
        as they are; or the call raises.

    Returns
    -------
    torch.Tensor
        The result y, in the shape, dtype and memory format of the input. An empty batch gives an empty y and leaves the
        running statistics as they are.

    Raises
    ------
    ShapeError
        If a tensor does not fit the input, or if evaluation has no running statistics.
    DtypeError
        If a tensor has a dtype, layout or class that is not accepted.
    ArgumentError
        If an option or a weight of the mask has no valid value, if only one of the running statistics is given, or with
        ``nonfinite="raise"``.
    OptionError
        If the function does not have an option of this name.
    DegenerateBatchError
        If a batch in training has a single value per channel, or if m <= correction or running_correction.

    See Also
    --------
    BatchNorm2d : A layer with parameters and running statistics.

    Notes
    -----
    Where torch raises for the same mistake, errors are of torch's class as well.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015, algorithms 1 and 2. The running statistics are torch's convention.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> x = torch.tensor([[1.0], [2.0], [6.0]])
    >>> mean, var = torch.zeros(1), torch.ones(1)
    >>> xt.batch_norm(x, mean, var, training=True, activation="relu").flatten()
    tensor([0.0000, 0.0000, 1.3887])
    >>> mean, var
    (tensor([0.3000]), tensor([1.6000]))
    """
    if unknown:
        refuse_options("batch_norm", unknown, {"epsilon": "It is called eps here."})
    for name, value in dict(input=input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias,
                            residual=residual, mask=mask).items():  # fmt: skip
        check_tensor(name, value)
    if input is None:
        raise TensorTypeError("batch_norm: input is None, expected a tensor.")
    if type(training) is not bool and not isinstance(training, (int, Tensor)):
        raise TensorTypeError(f"batch_norm: training is {training!r}, expected True or False.")
    if training and (running_mean is None) != (running_var is None):
        raise ArgumentError(
            "batch_norm: one of running_mean and running_var is None, expected both or neither."
        )
    if not training and (running_mean is None or running_var is None):
        raise TensorShapeError(
            "batch_norm: running_mean and running_var are needed when training=False, got None. "
            "Pass them, or training=True for the batch's own statistics."
        )
    check_nonfinite(nonfinite)
    if input.shape == (0,):  # torch's function takes it for an empty batch, whatever the other tensors are
        check_options("batch_norm", eps, correction, activation)
        return _of_no_dimension(input, weight, bias)
    given = (None, None) if training else (running_mean, running_var)
    following = None
    if training and running_mean is not None and running_var is not None:
        running = Running(running_mean, running_var, None, None)
        following = Following(running, momentum, correction, running_correction, nonfinite)
    t = Inputs(input, weight, bias, residual, mask, *given)
    y, batch = normalized(t, eps, correction, activation, following)
    if batch is not None and following is not None:
        follow(following, batch)
    return y


def _of_no_dimension(x: Tensor, weight: Maybe, bias: Maybe) -> Tensor:
    """A copy of x, on which the gradients of weight and bias are 0."""
    y = x.clone()
    for parameter in (weight, bias):
        if parameter is not None:
            y = y + parameter.to(y.dtype).sum()
    return y


def normalized(
    t: Inputs, eps: Any, correction: Any, activation: Any, following: Following | None = None
) -> tuple[Tensor, Batch | None]:
    """y with given statistics, or, where mean is None, with the batch's own, which are returned unless x is empty.

    following: running statistics that will be given to `follow`. They move here already if the kernels that find the
    batch's can move them too; Batch.followed is then True.
    """
    if t.mask is not None and t.mean is not None:
        t = t._replace(mask=None)  # a mask weighs the batch's statistics
    if eager() and (found := _plan_for_kernels(t, eps, correction, activation)) is not None:
        return _by_kernels(t, *found, following)
    o = check_options("batch_norm", eps, correction, activation)
    if unrecorded(_checked, t) and t.mean is None:
        return normalized(_of_nothing(t), eps, correction, activation)[0], None
    recorded, transformed = tracing(), transforming() or differentiating_forward()
    if recorded and not transformed:
        return operators.batch_norm(t, o)
    if t.mask is not None and not (recorded or transforming() or t.mask.is_meta):
        check_weights(t.x, t.mask.detach(), o)
    y, batch = composed.batch_norm(t, o)
    if not (recorded or transforming()) and on_a_device(batch.count):
        batch = batch._replace(count=float(batch.count))  # a mask's: the host has waited for it already
    return y, batch if t.mean is None else None


_plans = SameKind()
_running = SameKind()  # statistics that the compiled kernels take, by their shape


def _plan_for_kernels(t: Inputs, eps: Any, correction: Any, activation: Any) -> tuple[Plan, Any] | None:
    """The plan of this call and the engine that runs it; None where no kernels take it."""
    x, weight, bias, residual, mask, mean, var = t
    options = eps, correction, activation
    if weight is None or bias is None or not (residual is mask is mean is None):
        engine = engine_for(*t)
        if engine is None or _differentiated(mask, mean, var):
            return None
        return plan_for(t, *options), engine
    if (found := _plans.get(weight, x, weight, bias)) is not None and all(map(is_, found[1], options)):
        plan: Plan = found[0]
        return plan, cpu
    if (engine := engine_for(x, weight, bias)) is None:
        return None
    plan = plan_for(t, *options)
    if engine is cpu and constant(*options):  # they are compared by identity
        _plans.put((plan, options), weight, x, weight, bias)
    return plan, engine


def _differentiated(*constants: Maybe) -> bool:
    """Whether a gradient is needed with respect to a mask or given statistics, which the kernels do not compute."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in constants)


def _by_kernels(
    t: Inputs, plan: Plan, engine: Any, following: Following | None = None
) -> tuple[Tensor, Batch | None]:
    x, weight, bias, residual, mask, mean, var = t
    differentiated = torch.is_grad_enabled()
    run = normalize if differentiated else engine.normalize
    if mean is not None and var is not None:
        if not differentiated:
            given = Run(plan, cpu.FLOAT64, plan.m, None, engine)
            return engine.normalize(x, weight, bias, residual, given, (mean, var)), None
        # A copy: the layer's statistics may move before the backward pass.
        check_memory(mean, var)
        statistics = torch.stack((mean, var)).double()
        return run(x, weight, bias, residual, Run(plan, statistics, plan.m, None, engine)), None
    if not x.numel():
        return _by_kernels(_of_nothing(t), plan._replace(m=math.inf), engine)
    p = engine.run_of(plan, x, mask)
    if following is not None and engine is not cpu and not recomputing():
        found = in_place(following, p.statistics, p.m)
        if found is not None and found[0] is engine:
            p = p._replace(moving=found[1])
    return run(x, weight, bias, residual, p), Batch(p.statistics, p.m, p.moving is not None)


def _checked(t: Inputs) -> bool:
    """Whether x is empty, if all tensors fit it."""
    check_inputs(t)
    return not t.x.numel()


def _of_nothing(t: Inputs) -> Inputs:
    """An empty batch with statistics, of which any will do."""
    zeros, ones = (
        t.x.new_zeros(t.x.shape[1], dtype=torch.float32),
        t.x.new_ones(t.x.shape[1], dtype=torch.float32),
    )
    return t._replace(mask=None, mean=zeros, var=ones)


def follow(following: Following, batch: Batch) -> None:
    """Moves the running statistics towards the batch's, unless this forward repeats one (activation checkpointing).

        batches += 1      k = momentum; if it is None, 1 / (batches - skipped): the plain average over the batches that
                              the channel has not left out
        running_mean += k (mean - running_mean)
        running_var  += k (m2 / (m - running_correction) - running_var)

    nonfinite "skip" leaves a channel as it is if its new statistics were not finite in their dtype, and counts it in
    `skipped`; "raise" raises ArgumentError. Raises DegenerateBatchError where m <= running_correction.
    If an exception is raised, nothing has changed.
    """
    if batch.followed or recomputing():
        return
    if type(batch.count) is not float and tracing() and not transforming():
        track(following, batch)
        return
    found = in_place(following, batch.statistics, batch.count)
    if found is not None:
        try:
            found[0].track(found[1], batch.statistics)
            return
        except (IndexError, RuntimeError):  # misaligned, or none of theirs is left: `move` raises then
            pass
    move(following, batch)


def in_place(following: Following, statistics: Tensor, m: Any) -> tuple[Any, Moving] | None:
    """The engine whose kernels can move these where they are, and what they move; None where there is none."""
    running, momentum, correction, running_correction, nonfinite = following
    mean, var, batches, skipped = running
    if not (
        # The kernels have found these statistics: there is no transform. Or they are a graph's, or of many ranks.
        (type(m) is float or (on_a_device(m) and m.dtype is torch.float64 and not transforming()))
        and type(running_correction) is int
        and 0 <= running_correction <= 1
        and (type(m) is not float or m - running_correction > 1e-6 * m)
        and nonfinite == "propagate"
        and (
            (type(momentum) is float and -math.inf < momentum < math.inf)
            or (momentum is skipped is None and batches is not None)
        )
    ):
        return None
    moving = Moving(mean, var, batches, momentum, m, correction, running_correction)
    shape = statistics.shape[1:]
    if batches is not None and _running.get(mean, mean, var, batches) == shape:
        return cpu, moving
    for t in (mean, var):
        if (
            not (t.shape == shape and t.dtype in CODES and t.is_contiguous())
            or t.requires_grad
            or t.is_inference()
        ):
            return None
    counted = batches is None or (
        batches.dtype is torch.int64 and batches.numel() == 1 and not batches.is_inference()
    )
    engine = engine_for(mean, var, batches, statistics) if counted else None
    if batches is not None and engine is cpu:
        _running.put(shape, mean, mean, var, batches)
    return None if engine is None else (engine, moving)


kernels.in_place = in_place
