"""The kernels on one part of a batch, whose other parts lie elsewhere: what it adds, and what it makes of the whole.

The formulas are in `xhat.equations`; who brings the parts together must never live here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from xhat.ops import run_forward
from xhat.torch import cpu
from xhat.torch.cpu import CODES, Pass
from xhat.torch.options import Options
from xhat.torch.weights import weights_in_order

__all__ = ["gradients", "moments"]

Maybe = Tensor | None


def moments(x: Tensor, mask: Maybe) -> tuple[float, int, Tensor]:
    """m, the number of values that have a weight, and mean and m2 (2, C) in float64; zeros where there are none."""
    walk = cpu.walk_of(x.shape, x.stride())
    found = torch.zeros((2, x.shape[1]), dtype=torch.float64, device="cpu")
    values = x.numel() // x.shape[1]
    count, weights = float(values), None
    if mask is not None:
        weights = weights_in_order(mask, x, walk.view)
        count, values = float(weights.sum()), int(torch.count_nonzero(weights))
    if count:
        x, source = cpu.read(x, walk)
        mean, place = found.data_ptr(), None if weights is None else weights.data_ptr()
        run_forward(True, False, CODES[x.dtype], walk.view.shape, source, place, None, None, None, None, mean,
                    mean + 8 * x.shape[1], 1.0, 1.0, 0, 0.0)  # fmt: skip
    return count, values, found


def gradients(
    dy: Tensor, x: Tensor, weight: Maybe, bias: Maybe, extra: Maybe, mask: Maybe, statistics: Tensor, count: float,
    residual: bool, o: Options, total: Callable[[Tensor], Tensor] | None,
) -> tuple[Maybe, Tensor, Tensor, Maybe]:  # fmt: skip
    """dx, dweight, dbias, dresidual, where the whole batch has this count, and `total` adds the sums of all parts.

    dweight and dbias are this part's own sums. Without `total` there is no dx.
    """
    p = Pass(x, o, statistics, residual)
    p.count = count
    if mask is not None:
        p.weights = weights_in_order(mask, x, p.walk.view)
    sums = torch.zeros((2, x.shape[1]), dtype=torch.float64, device="cpu")
    if x.numel():
        cpu.backward(dy, x, p, *sums, reduce=True, gamma=weight, beta=bias, extra=extra)
    activated = residual and o.activation is not None  # dresidual = dy act'(pre) comes with dx
    dx = dresidual = into = into_residual = None
    if total is not None or activated:
        totals = sums if total is None else total(sums)
        dx, into = cpu.result_like(x, p.walk)
        if activated:
            dresidual, into_residual = cpu.result_like(x, p.walk)
        cpu.backward(dy, x, p, *totals, reduce=False, dx=into, gamma=weight, beta=bias, extra=extra,
                      dresidual=into_residual)  # fmt: skip
    return None if total is None else dx, sums[1], sums[0], dresidual
