"""`python -m benchmarks.gradient_penalty`: second derivatives of one layer, as a gradient penalty takes them."""

import statistics
import time
from typing import Any

import torch
from torch import nn

import xhat.torch as xt

__all__ = ["main"]

SHAPE = (32, 64, 32, 32)


def seconds(layer: Any) -> float:
    """The gradient of the squared norm of a gradient."""
    x = torch.randn(SHAPE, requires_grad=True)
    start = time.perf_counter()
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    return time.perf_counter() - start


def main() -> None:
    """Prints the medians of steps that alternate between xhat's layer and torch's."""
    torch.set_num_threads(1)
    layers = xt.BatchNorm2d(SHAPE[1]), nn.BatchNorm2d(SHAPE[1])
    steps = [[seconds(layer) for layer in layers] for _ in range(12)][2:]
    ours, theirs = (statistics.median(times) for times in zip(*steps, strict=True))
    print(f"{SHAPE}, one thread: xhat {ours:.3f} s, torch {theirs:.3f} s, {theirs / ours:.1f} times as fast")


if __name__ == "__main__":
    main()
