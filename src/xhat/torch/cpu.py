"""Plain CPU tensors to the kernels, by address: the forward and the backward pass without autograd.

Nothing is checked here (the gate is `functional`), and no formula stands here (see `xhat.equations`).
"""

import math

import torch
from torch import Tensor

from xhat.checks import check_count
from xhat.errors import ArgumentError
from xhat.layout import View, canonical, strides_on, view_of
from xhat.ops import ACTIVATIONS, SIDES, run_backward, run_forward
from xhat.torch.options import Options

__all__ = ["CODES", "Pass", "gradients", "kept", "normalize", "weights_in_order"]

# As in kernels.h.
CODES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
CHANNELS = (1,)

Operand = tuple[int, tuple[int, int, int]]


class Pass:
    """What the backward pass needs of the forward pass besides x, its companions and the parameters.

    `statistics` are mean and var (2, C) in float64: the batch's, written by `normalize` when `batch` is true, else
    constants, with an infinite count. `mask` is what the caller gave, `weights` its numbers in the view's order.
    """

    __slots__ = ("batch", "count", "mask", "options", "residual", "statistics", "view", "weights")

    def __init__(
        self,
        x: Tensor,
        options: Options,
        statistics: Tensor | None,
        residual: bool,
        mask: Tensor | None = None,
    ) -> None:
        self.options = options
        self.view = view_for(x)
        self.batch = statistics is None
        self.residual = residual
        self.mask = mask
        self.weights: Tensor | None = None
        self.count: float = math.inf
        if statistics is None:
            statistics = torch.empty((2, x.shape[1]), dtype=torch.float64)
            self.count = float(self.view.shape[0] * self.view.shape[2])
            if mask is not None:
                self.weights = weights_in_order(mask, x, self.view)
                self.count = float(self.weights.sum())
                values = int(torch.count_nonzero(self.weights))
                check_count(self.count, values, options.correction, "batch_norm", x.shape)
        self.statistics = statistics

    def linear(self, x: Tensor) -> "Pass":
        """The same pass over x without the activation, its statistics those that were found."""
        p = Pass(x, self.options.linear, self.statistics, self.residual)
        p.batch, p.count, p.mask, p.weights = self.batch, self.count, self.mask, self.weights
        return p

    @property
    def divisor(self) -> float:
        """m - c."""
        return self.count - self.options.correction

    @property
    def weights_pointer(self) -> int | None:
        """The address of the weights."""
        return None if self.weights is None else self.weights.data_ptr()

    def pointers(self) -> tuple[int, int]:
        """Addresses of mean and var."""
        first = self.statistics.data_ptr()
        return first, first + 8 * self.statistics.shape[1]


def view_for(x: Tensor) -> View:
    """The view that walks x, or else a copy of it."""
    return view_of(x.shape, x.stride(), CHANNELS) or canonical(x.shape, CHANNELS)


def weights_in_order(mask: Tensor, x: Tensor, view: View) -> Tensor:
    """The mask's numbers in float64, as the view walks them."""
    check_weights(mask)
    full = mask.to(torch.float64).expand([1 if a == 1 else n for a, n in enumerate(x.shape)])
    order = view.outer + view.inner
    rest = tuple(a for a in range(x.dim()) if a not in order)
    return full.permute(rest + order).reshape(-1).contiguous()


def check_weights(mask: Tensor) -> None:
    """Raises ArgumentError for a weight that is negative, infinite or NaN."""
    if mask.dtype != torch.bool and not bool(((mask >= 0) & (mask < math.inf)).all()):
        raise ArgumentError(
            "batch_norm: mask has a negative, infinite or NaN weight, expected finite weights of at least 0."
        )


def _dense(like: Tensor, view: View) -> Tensor:
    """A new tensor of this shape and dtype that the view walks: like itself where it can be."""
    new = torch.empty_like(like)
    if strides_on(view, new.shape, new.stride()) is None:
        named = view.outer + view.channel + view.inner
        order = tuple(a for a in range(like.dim()) if a not in named) + named
        new = torch.empty_permuted(like.shape, order, dtype=like.dtype)
    return new


def _read(t: Tensor, view: View) -> tuple[Operand, Tensor]:
    """An input as the kernels take it, and what keeps its memory alive: a copy where the view can't walk it."""
    strides = strides_on(view, t.shape, t.stride())
    if strides is None:
        t = _dense(t, view).copy_(t)
        strides = strides_on(view, t.shape, t.stride())
        assert strides is not None
    return (t.data_ptr(), strides), t


def _write(t: Tensor | None, view: View) -> Operand | None:
    if t is None:
        return None
    strides = strides_on(view, t.shape, t.stride())
    assert strides is not None, "a result lies as its view does"
    return t.data_ptr(), strides


def _parameter(p: Tensor | None) -> tuple[tuple[int, int] | None, Tensor | None]:
    """A vector of one number per channel with its dtype's code, and what keeps it alive."""
    if p is None:
        return None, None
    p = p if p.is_contiguous() else p.contiguous()
    return (p.data_ptr(), CODES[p.dtype]), p


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, p: Pass
) -> Tensor:
    """y = act(weight xhat + bias [+ residual]); writes p.statistics first when they are to be the batch's."""
    view, o = p.view, p.options
    y = _dense(x, view)
    (source, x), (gamma, weight), (beta, bias) = _read(x, view), _parameter(weight), _parameter(bias)
    added = None
    if residual is not None:
        added, residual = _read(residual, view)
    run_forward(p.batch, True, CODES[x.dtype], view.shape, source, p.weights_pointer, gamma, beta, added,
                _write(y, view), *p.pointers(), p.divisor if p.batch else 1.0, o.eps, ACTIVATIONS[o.activation],
                o.slope)  # fmt: skip
    return y


def kept(residual: Tensor | None, y: Tensor, options: Options) -> Tensor | None:
    """What tells where the activation stood, beside x: nothing, y (leaky_relu) or the residual (silu)."""
    if residual is None or options.activation is None:
        return None
    return y if options.activation == "leaky_relu" else residual


# ------------------------------------------------------------------------------------------------------ backward


def _backward(
    dy: Tensor, x: Tensor, p: Pass, sum_dy: Tensor, sum_dy_xhat: Tensor, *, reduce: bool, dx: Tensor | None = None,
    gamma: Tensor | None = None, beta: Tensor | None = None, extra: Tensor | None = None,
    dresidual: Tensor | None = None, weighted: bool = True,
) -> None:  # fmt: skip
    """gradient_sums (reduce: writes both sums) and input_gradient (writes dx, and dresidual where extra is read)."""
    view, o = p.view, p.options
    (source, x), (gradient, dy) = _read(x, view), _read(dy, view)
    (scale, gamma), (shift, beta) = _parameter(gamma), _parameter(beta)
    other = None
    if extra is not None:
        other, extra = _read(extra, view)
    run_backward(reduce, dx is not None, CODES[x.dtype], view.shape, source, p.weights_pointer if weighted else None,
                 scale, shift, gradient, other, _write(dx, view), _write(dresidual, view), *p.pointers(),
                 _parameter(sum_dy)[0], _parameter(sum_dy_xhat)[0], p.count, p.divisor, o.eps,
                 SIDES[o.activation, p.residual], o.slope)  # fmt: skip


def _sum_for(parameter: Tensor | None, needed: bool, channels: int) -> Tensor:
    """Where a parameter's gradient goes; in float64, and for the map alone, where nobody asks for it."""
    if parameter is not None and needed:
        return torch.empty(channels, dtype=parameter.dtype)
    return torch.zeros(channels, dtype=torch.float64)


def gradients(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, extra: Tensor | None, p: Pass,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """dx, dweight, dbias, dresidual, of those that are needed (the others are None)."""
    need_x, need_weight, need_bias, need_residual = needs
    activated = p.residual and p.options.activation is not None  # dresidual = dy act'(pre) comes with dx
    dx = _dense(x, p.view) if need_x or (need_residual and activated) else None
    dresidual = _dense(x, p.view) if activated and dx is not None else None
    dweight, dbias = _sum_for(weight, need_weight, x.shape[1]), _sum_for(bias, need_bias, x.shape[1])
    _backward(dy, x, p, dbias, dweight, reduce=p.batch or need_weight or need_bias, dx=dx, gamma=weight, beta=bias,
              extra=extra, dresidual=dresidual)  # fmt: skip
    if need_residual and not activated:
        dresidual = dy
    return (dx if need_x else None, dweight if need_weight else None, dbias if need_bias else None,
            dresidual if need_residual else None)  # fmt: skip


def gradient_sums(dy: Tensor, x: Tensor, p: Pass) -> tuple[Tensor, Tensor]:
    """sum(dy) and sum(dy xhat) in float64, without weights."""
    sum_dy, sum_dy_xhat = torch.empty((2, x.shape[1]), dtype=torch.float64)
    _backward(dy, x, p, sum_dy, sum_dy_xhat, reduce=True, weighted=False)
    return sum_dy, sum_dy_xhat


def input_gradient(
    dy: Tensor, x: Tensor, gamma: Tensor, sum_dy: Tensor, sum_dy_xhat: Tensor, p: Pass, *, weighted: bool
) -> Tensor:
    """gamma rstd (dy - w sum_dy / m - w xhat sum_dy_xhat / (m - c)), with these sums."""
    dx = _dense(x, p.view)
    _backward(dy, x, p, sum_dy, sum_dy_xhat, reduce=False, dx=dx, gamma=gamma, weighted=weighted)
    return dx
