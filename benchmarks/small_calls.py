"""`python -m benchmarks.small_calls`: what a call takes on arrays so small that the checks around the kernels count.

Contestants take turns in bursts of a few calls, on one thread, and the least time of a call counts: bursts are short
enough to fall between other work of the machine.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import xhat
import xhat.torch as xt

__all__ = ["least", "main"]

SHAPES = ((32, 64), (8, 16, 4, 4), (64, 16, 4, 4))


def least(calls: Sequence[Callable[[], Any]], bursts: int, repeats: int = 15) -> list[float]:
    """Microseconds of each call, the least over the bursts."""
    found = [float("inf")] * len(calls)
    for _ in range(bursts):
        for i, call in enumerate(calls):
            begun = time.perf_counter()
            for _ in range(repeats):
                call()
            found[i] = min(found[i], (time.perf_counter() - begun) / repeats * 1e6)
    return found


def main(bursts: int = 1000) -> None:
    """Print the times of NumPy's functions, and of the layers with their ratio to torch's."""
    torch.set_num_threads(1)
    table = Table("float32, us", "NumPy forward", "backward", "layer forward", "/ torch", "both", "/ torch")
    for shape in SHAPES:
        x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
        a, b, gamma, beta = x.detach().numpy(), dy.numpy(), np.ones(shape[1], "f"), np.zeros(shape[1], "f")
        _, context = xhat.batch_norm(a, gamma, beta)
        kind = "BatchNorm2d" if len(shape) == 4 else "BatchNorm1d"
        ours, theirs = getattr(xt, kind)(shape[1]), getattr(torch.nn, kind)(shape[1])

        def step(layer: Any, x: Any = x, dy: Any = dy) -> None:
            torch.autograd.grad(layer(x), [x, layer.weight, layer.bias], dy)

        forward, backward = least(
            [
                lambda a=a, g=gamma, b=beta: xhat.batch_norm(a, g, b),
                lambda b=b, c=context: xhat.batch_norm_backward(b, c),
            ],
            bursts,
        )
        layer, torchs = least([lambda f=ours, x=x: f(x), lambda f=theirs, x=x: f(x)], bursts)
        both, torchs_both = least([lambda f=ours: step(f), lambda f=theirs: step(f)], bursts)
        times = [f"{t:.1f}" for t in (forward, backward, layer, both)]
        times[3:3] = [f"{layer / torchs:.2f}"]
        table.add_row(str(shape), *times, f"{both / torchs_both:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
