"""Other people's Triton kernels, where they are installed. What inductor generates is `compile` in `ways`."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = ["flaggems"]


class _FlagGems(torch.autograd.Function):
    """FlagGems' batch norm in training. Its kernels write running statistics, so it gets some."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        from flag_gems.ops.batch_norm import batch_norm

        running = torch.zeros(x.shape[1], device=x.device), torch.ones(x.shape[1], device=x.device)
        y, *statistics = batch_norm(x, weight, bias, *running, True, 0.1, 1e-5)
        ctx.save_for_backward(x, weight, *running, *statistics)
        result: Tensor = y
        return result

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
        from flag_gems.ops.batch_norm import batch_norm_backward

        return tuple(batch_norm_backward(dy, *ctx.saved_tensors, True, 1e-5, [True, True, True]))


def flaggems(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """y by FlagGems' kernels. Raises ModuleNotFoundError without the package (pip install --no-deps flag_gems)."""
    if find_spec("flag_gems") is None:
        raise ModuleNotFoundError("flag_gems is not installed", name="flag_gems")
    y: Tensor = _FlagGems.apply(x, weight, bias)
    return y
