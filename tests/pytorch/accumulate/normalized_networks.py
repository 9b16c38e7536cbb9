"""Networks, and one pass of the whole batch beside micro-batches."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from architectures import network, torchvision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import xhat.torch as xt
from benchmarks.torch.nets import resnet20

__all__ = ["build", "cut", "loss", "same", "whole"]


def build(name: str) -> nn.Module:
    """A network in float64, with parameters that are no ones and zeros."""
    torch.manual_seed(1)
    if name == "densenet":
        sizes = {"growth_rate": 8, "block_config": (2, 3), "num_init_features": 12, "num_classes": 10}
        return torchvision().models.DenseNet(**sizes, bn_size=2).double()
    return (resnet20() if name == "resnet20" else network(name)).double()


def data(n: int, size: int = 32, name: str = "") -> tuple[Tensor, Tensor]:
    """Images, and a class for each, or for each pixel."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(n, 3, size, size, generator=g, dtype=torch.float64)
    shape = (n, size, size) if name == "unet" else (n,)
    return x, torch.randint(10 if name != "unet" else 1, shape, generator=g)


def loss(output: Tensor, batch: Any) -> Tensor:
    """The mean over the samples; of a mask, of squares."""
    x, t = batch
    return (
        (output - x.mean(1, keepdim=True)).square().mean() if output.dim() > 2 else cross_entropy(output, t)
    )


def cut(batch: tuple[Tensor, ...], sizes: list[int]) -> list[tuple[Tensor, ...]]:
    """The micro-batches of these sizes."""
    return list(zip(*(part.split(sizes) for part in batch), strict=True))


def whole(model: nn.Module, batch: Any, of: Callable[..., Tensor] = loss) -> tuple[nn.Module, Tensor]:
    """A copy of the model after one pass of the whole batch, and its loss."""
    model = copy.deepcopy(model)
    value = of(model(batch[0]), batch)
    value.backward()
    return model, value.detach()


def same(model: nn.Module, expected: nn.Module, bound: float) -> None:
    """Asserts that gradients, buffers and counters agree, relative to the largest value of each tensor."""
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            assert off(p.grad, q.grad) < bound, (name, off(p.grad, q.grad))
    for (name, b), c in zip(model.named_buffers(), expected.buffers(), strict=True):
        assert b.dtype == c.dtype
        assert off(b, c) < bound, (name, off(b, c))


def off(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value, or to 1e-3 where that is less: a gradient may be 0."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-3))


__all__ += ["data", "off", "xt"]
