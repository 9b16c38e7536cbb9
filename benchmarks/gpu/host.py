"""What a call costs the host: the time of everything but the launches themselves, by a driver that launches nothing."""

import time
from collections.abc import Callable

import torch

import xhat.torch as xt
from benchmarks.gpu.no_device import LAUNCHED, stand_in

__all__ = ["host_times"]


def host_times(repeats: int = 400) -> dict[str, float]:
    """The least microseconds of a layer's forward and backward pass: three launches each, and one each."""
    stand_in()
    found = {}
    for name, shape in (("three launches", (8, 16, 32, 64)), ("one launch", (4, 16, 6, 4))):
        layer = xt.BatchNorm2d(16)
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        dy, inputs = torch.ones_like(y), (x, layer.weight, layer.bias)

        def backward(y=y, inputs=inputs, dy=dy) -> None:  # type: ignore[no-untyped-def]
            torch.autograd.grad(y, inputs, dy, retain_graph=True)

        found[f"forward, {name}"] = _least(lambda layer=layer, x=x: layer(x), repeats)  # type: ignore[misc]
        found[f"backward, {name}"] = _least(backward, repeats)
    return found


def _least(call: Callable[[], object], repeats: int) -> float:
    call()
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    LAUNCHED.clear()
    return min(took) * 1e6
