"""The ways to compute a case: by xhat's kernels, by its equations as torch's operations, and by torch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import xhat.torch as xt
from benchmarks.gpu.cases import Case, Tensors
from benchmarks.gpu.peers import flaggems

__all__ = ["WAYS", "backward_of", "exact", "leaves", "ours"]

Forward = Callable[[Tensors], Tensor]


def ours(case: Case) -> Callable[..., Tensor]:
    """The call of xhat, of x, weight, bias and residual."""
    activation = "relu" if "relu" in case.kind else None

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        return xt.batch_norm(x, None, None, weight, bias, True, residual=residual, activation=activation)

    return run


def _ours(case: Case, triton: bool) -> Forward:
    run = ours(case)

    def forward(t: Tensors) -> Tensor:
        xt.use_triton(triton)
        return run(*t[:4])

    return forward


def _flaggems(case: Case) -> Forward:
    def forward(t: Tensors) -> Tensor:
        y = flaggems(t.x, t.weight, t.bias)
        y = y if t.residual is None else y + t.residual
        return F.relu(y) if "relu" in case.kind else y

    return forward


def _torchs(case: Case, cudnn: bool = True, compiled: bool = False) -> Forward:
    def plain(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        y = F.batch_norm(x, None, None, weight, bias, True)
        y = y if residual is None else y + residual
        return F.relu(y) if "relu" in case.kind else y

    run: Any = torch.compile(plain, fullgraph=True, dynamic=False) if compiled else plain

    def forward(t: Tensors) -> Tensor:
        torch.backends.cudnn.enabled = cudnn
        try:
            y: Tensor = run(t.x, t.weight, t.bias, t.residual)
        finally:
            torch.backends.cudnn.enabled = True
        return y

    return forward


WAYS: dict[str, Callable[[Case], Forward]] = {
    "xhat": lambda case: _ours(case, triton=True),
    "composed": lambda case: _ours(case, triton=False),
    "cudnn": _torchs,
    "native": lambda case: _torchs(case, cudnn=False),
    "compile": lambda case: _torchs(case, compiled=True),
    "flaggems": _flaggems,
}


def leaves(t: Tensors) -> tuple[Tensors, list[Tensor]]:
    """The same numbers as leaves of a graph, and those of which a gradient is wanted."""
    found = Tensors(*(None if v is None else v.detach().requires_grad_() for v in t[:4]), t.dy)  # type: ignore[arg-type]
    return found, [v for v in found[:4] if v is not None]


def backward_of(forward: Forward, t: Tensors) -> Callable[[], tuple[Tensor, ...]]:
    """The backward pass of one forward pass, which can run again and again."""
    t, wanted = leaves(t)
    y = forward(t)
    return lambda: torch.autograd.grad(y, wanted, t.dy, retain_graph=True)


def exact(case: Case, t: Tensors) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """y, pre and the gradients in float64, by autograd of the definition."""
    wide, wanted = leaves(Tensors(*(None if v is None else v.double() for v in t)))  # type: ignore[arg-type]
    x, column = wide.x, (1, -1, 1, 1)
    mean = x.mean((0, 2, 3), keepdim=True)
    var = ((x - mean) ** 2).mean((0, 2, 3), keepdim=True)
    pre = (x - mean) / (var + 1e-5).sqrt() * wide.weight.view(column) + wide.bias.view(column)
    pre = pre if wide.residual is None else pre + wide.residual
    y = pre.relu() if "relu" in case.kind else pre
    return y.detach(), pre.detach(), torch.autograd.grad(y, wanted, wide.dy)
