"""Two models side by side: the same seed, the same data, and everything that they give and keep."""

from typing import Any

import blocks
import torch
from torch import nn


def made(kind: type[nn.Module], seed: int = 0) -> nn.Module:
    """A model in float64 with parameters that are no special values."""
    torch.manual_seed(seed)
    model = kind().double()
    for p in model.parameters():
        nn.init.normal_(p, 0.4, 0.6)
    return model


def data(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(
        *(shape or (4, blocks.C, 5, 6)), generator=torch.Generator().manual_seed(seed)
    ).double()


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    return list(value) if isinstance(value, list | tuple) else [value]


def results(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs, gradients and buffers after two steps of training, and the outputs of evaluation."""
    torch.manual_seed(11)
    model.zero_grad(set_to_none=True)
    found = []
    for _ in range(2):
        x = x.detach().clone().requires_grad_()
        out = tensors(model(x))
        if any(y.requires_grad for y in out):
            sum((y * (i + y.detach().cos())).sum() for i, y in enumerate(out)).backward()
            found += [x.grad]
        found += [y.detach() for y in out]
    found += [p.grad for p in model.parameters() if p.grad is not None]
    found += [b.clone() for b in model.buffers()]
    mode = model.training
    model.eval()
    with torch.no_grad():
        found += [y.clone() for y in tensors(model(x.detach()))]
    model.train(mode)
    return found


def same(ours: nn.Module, theirs: nn.Module, x: torch.Tensor | None = None) -> None:
    x = data() if x is None else x
    for a, b in zip(results(ours, x), results(theirs, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
