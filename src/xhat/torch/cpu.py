"""Plain CPU tensors to the kernels, by address: the forward and the backward pass without autograd.

Nothing is checked here (the gate is `functional`), and no formula stands here (see `xhat.equations`).
"""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from xhat.checks import check_count, check_sum
from xhat.layout import View, canonical, strides_on, view_of
from xhat.ops import ACTIVATIONS, SIDES, run_backward, run_forward
from xhat.torch.memory import LARGE, ask_for_huge_pages
from xhat.torch.options import Options
from xhat.torch.weights import mask_of, weights_in_order

__all__ = [
    "CODES",
    "Pass",
    "backward",
    "evaluate",
    "gradient_sums",
    "gradients",
    "input_gradient",
    "kept",
    "normalize",
    "read",
    "result_like",
    "walk_of",
]

# As in kernels.h.
CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
CHANNELS = (1,)
_FLOAT64 = torch.empty(0, dtype=torch.float64, device="cpu")  # what is made like it is made in half the time

Operand = tuple[int, tuple[int, int, int]]


class Walk(NamedTuple):
    """How the kernels walk a tensor of some shape and strides, and those made like it."""

    view: View
    stride: tuple[int, ...]  # of the tensor
    steps: tuple[int, int, int] | None  # the same on the view; None: it has to be copied first
    dense: bool  # empty_like gives the same strides again


@lru_cache(maxsize=4096)
def walk_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> Walk:
    """The view that walks such a tensor, or else a copy of it."""
    view = view_of(shape, stride, CHANNELS)
    dense, reach = True, 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        dense &= size == 1 or step == reach
        reach *= max(size, 1)
    walked = view or canonical(shape, CHANNELS)
    return Walk(walked, stride, None if view is None else strides_on(view, shape, stride), dense)


class Pass:
    """What the backward pass needs of the forward pass besides x, its companions and the parameters.

    `statistics` are mean and var (2, C) in float64: the batch's, written by `normalize` when `batch` is true, else
    constants, with an infinite count. `weights` are the mask's numbers in the view's order, a copy: who gave the mask
    may fill it anew for the next batch.
    """

    __slots__ = ("batch", "count", "options", "residual", "statistics", "walk", "weights")

    def __init__(
        self,
        x: Tensor,
        options: Options,
        statistics: Tensor | None,
        residual: bool,
        mask: Tensor | None = None,
    ) -> None:
        self.options = options
        self.walk = walk_of(x.shape, x.stride())
        self.residual = residual
        self.weights: Tensor | None = None
        self.batch = statistics is None
        if statistics is not None:
            self.statistics, self.count = statistics, math.inf
            return
        outer, channels, inner = self.walk.view.shape
        self.statistics = _FLOAT64.new_empty(2, channels)
        self.count = float(outer * inner)
        if mask is not None:
            self.weights = weights_in_order(mask, x, self.walk.view)
            self.count = check_sum(float(self.weights.sum()), "batch_norm")
            values = int(torch.count_nonzero(self.weights))
            check_count(self.count, values, options.correction, "batch_norm", x.shape, masked=True)

    def linear(self, x: Tensor) -> "Pass":
        """The same pass over x without the activation, its statistics those that were found."""
        p = Pass(x, self.options.linear, self.statistics, self.residual)
        p.batch, p.count, p.weights = self.batch, self.count, self.weights
        return p

    def mask(self, x: Tensor) -> Tensor | None:
        """The weights in x's order, of size 1 along the channels."""
        return None if self.weights is None else mask_of(self.weights, x, self.walk.view)

    @property
    def divisor(self) -> float:
        """m - c."""
        return self.count - self.options.correction

    @property
    def weights_pointer(self) -> int | None:
        """The address of the weights."""
        return None if self.weights is None else self.weights.data_ptr()


# ------------------------------------------------------------------------------------------------------ operands


def result_like(x: Tensor, walk: Walk) -> tuple[Tensor, Operand]:
    """A result of x's shape and dtype, like x in memory where that can be walked."""
    new = torch.empty_like(x)
    if new.nbytes >= LARGE:
        ask_for_huge_pages(new.data_ptr(), new.nbytes)
    if walk.dense and walk.steps is not None and x.stride() == walk.stride:
        return new, (new.data_ptr(), walk.steps)
    steps = strides_on(walk.view, new.shape, new.stride())
    if steps is None:
        view = walk.view
        named = view.outer + view.channel + view.inner
        order = tuple(a for a in range(x.dim()) if a not in named) + named
        new = torch.empty_permuted(x.shape, order, dtype=x.dtype, device="cpu")
        steps = strides_on(view, new.shape, new.stride()) if new.numel() else (0, 0, 0)
        assert steps is not None
    return new, (new.data_ptr(), steps)


def read(t: Tensor, walk: Walk) -> tuple[Tensor, Operand]:
    """An input, or a copy where the view can't walk it: who calls keeps it alive."""
    if t.stride() == walk.stride:
        steps = walk.steps
    else:
        steps = strides_on(walk.view, t.shape, t.stride())
    address = t.data_ptr()
    if steps is not None and address:  # a tensor that is known to be zero has none
        return t, (address, steps)
    copy, operand = result_like(t, walk)
    return copy.copy_(t), operand


def _maybe_read(t: Tensor | None, walk: Walk) -> tuple[Tensor | None, Operand | None]:
    return (None, None) if t is None else read(t, walk)


def _per_channel(vector: Tensor | None) -> tuple[Tensor | None, tuple[int, int] | None]:
    return (None, None) if vector is None else _read_vector(vector)


def _read_vector(vector: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """A number per channel, as address and dtype: who calls keeps it alive."""
    address = vector.data_ptr()
    if vector.stride() != (1,) or not address:
        vector = vector.clone(memory_format=torch.contiguous_format)
        address = vector.data_ptr()
    return vector, (address, CODES[vector.dtype])


# ------------------------------------------------------------------------------------------------------- forward


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, p: Pass
) -> Tensor:
    """y = act(weight xhat + bias [+ residual]); writes p.statistics first when they are to be the batch's."""
    mean = p.statistics.data_ptr()
    var = mean + 8 * p.walk.view.shape[1]
    divisor = p.divisor if p.batch else 1.0
    return _forward(
        p.batch, x, weight, bias, residual, p.walk, p.weights_pointer, mean, var, divisor, p.options
    )


def evaluate(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, mean: Tensor, var: Tensor,
    o: Options,
) -> Tensor:  # fmt: skip
    """The same with given statistics of any dtype, which nobody will differentiate."""
    mean, mu = _read_vector(mean)
    var, sigma = _read_vector(var)
    return _forward(False, x, weight, bias, residual, walk_of(x.shape, x.stride()), None, mu, sigma, 1.0, o)


def _forward(
    batch: bool, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, walk: Walk,
    weights: int | None, mean: Any, var: Any, divisor: float, o: Options,
) -> Tensor:  # fmt: skip
    y, result = result_like(x, walk)
    x, source = read(x, walk)
    weight, gamma = _per_channel(weight)
    bias, beta = _per_channel(bias)
    residual, added = _maybe_read(residual, walk)
    run_forward(batch, True, CODES[x.dtype], walk.view.shape, source, weights, gamma, beta, added, result, mean, var,
                divisor, o.eps, ACTIVATIONS[o.activation], o.slope)  # fmt: skip
    return y


def kept(residual: Tensor | None, y: Tensor, options: Options) -> Tensor | None:
    """What tells where the activation stood, beside x: nothing, y (leaky_relu) or the residual (silu)."""
    if residual is None or options.activation is None:
        return None
    return y if options.activation == "leaky_relu" else residual


# ------------------------------------------------------------------------------------------------------ backward


def backward(
    dy: Tensor, x: Tensor, p: Pass, sum_dy: Tensor, sum_dy_xhat: Tensor, *, reduce: bool, dx: Operand | None = None,
    gamma: Tensor | None = None, beta: Tensor | None = None, extra: Tensor | None = None,
    dresidual: Operand | None = None, weighted: bool = True,
) -> None:  # fmt: skip
    """gradient_sums (reduce: writes both sums) and input_gradient (writes dx, and dresidual where extra is read)."""
    walk, o = p.walk, p.options
    if not x.numel():  # the kernels, called for nothing, write nothing
        sum_dy.zero_()
        sum_dy_xhat.zero_()
        return
    x, source = read(x, walk)
    dy, gradient = read(dy, walk)
    gamma, scale = _per_channel(gamma)
    beta, shift = _per_channel(beta)
    extra, other = _maybe_read(extra, walk)
    mean = p.statistics.data_ptr()
    run_backward(reduce, dx is not None, CODES[x.dtype], walk.view.shape, source,
                 p.weights_pointer if weighted else None, scale, shift, gradient, other, dx, dresidual, mean,
                 mean + 8 * walk.view.shape[1], (sum_dy.data_ptr(), CODES[sum_dy.dtype]),
                 (sum_dy_xhat.data_ptr(), CODES[sum_dy_xhat.dtype]), p.count, p.divisor, o.eps,
                 SIDES[o.activation, p.residual], o.slope)  # fmt: skip


def _sum_for(parameter: Tensor | None, needed: bool, channels: int) -> Tensor:
    """Where a parameter's gradient goes; in float64, and for the map alone, where nobody asks for it."""
    if parameter is not None and needed:
        return torch.empty_like(parameter)
    return torch.zeros(channels, dtype=torch.float64, device="cpu")


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, extra: Tensor | None, p: Pass,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """dx, dweight, dbias, dresidual, of those that are needed (the others are None)."""
    need_x, need_weight, need_bias, need_residual = needs
    activated = p.residual and p.options.activation is not None  # dresidual = dy act'(pre) comes with dx
    dx = dresidual = into = into_residual = None
    if need_x or (need_residual and activated):
        dx, into = result_like(x, p.walk)
        if activated:
            dresidual, into_residual = result_like(x, p.walk)
    channels = x.shape[1]
    dweight, dbias = _sum_for(weight, need_weight, channels), _sum_for(bias, need_bias, channels)
    backward(dy, x, p, dbias, dweight, reduce=p.batch or need_weight or need_bias, dx=into, gamma=weight, beta=bias,
              extra=extra, dresidual=into_residual)  # fmt: skip
    if need_residual and not activated:
        dresidual = dy
    return (dx if need_x else None, dweight if need_weight else None, dbias if need_bias else None,
            dresidual if need_residual else None)  # fmt: skip


def gradient_sums(dy: Tensor, x: Tensor, p: Pass) -> tuple[Tensor, Tensor]:
    """sum(dy) and sum(dy xhat) in float64, without weights."""
    sum_dy, sum_dy_xhat = torch.empty((2, x.shape[1]), dtype=torch.float64, device="cpu")
    backward(dy, x, p, sum_dy, sum_dy_xhat, reduce=True, weighted=False)
    return sum_dy, sum_dy_xhat


def input_gradient(
    dy: Tensor, x: Tensor, gamma: Tensor, sum_dy: Tensor, sum_dy_xhat: Tensor, p: Pass, *, weighted: bool
) -> Tensor:
    """gamma rstd (dy - w sum_dy / m - w xhat sum_dy_xhat / (m - c)), with these sums."""
    dx, into = result_like(x, p.walk)
    backward(dy, x, p, sum_dy, sum_dy_xhat, reduce=False, dx=into, gamma=gamma, weighted=weighted)
    return dx
