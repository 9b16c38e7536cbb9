"""A pass of recalibrate beside a plain evaluation pass: ResNet-20, and a network with little between its batch
norms."""

from collections.abc import Iterator

import torch
from torch import nn

import xhat.torch as xt
from benchmarks.harness.contest import Entry, race
from benchmarks.harness.rows import Row
from benchmarks.torch.nets import build

__all__ = ["measure"]

SHAPE = (64, 3, 32, 32)


def _networks() -> dict[str, nn.Module]:
    convolutions = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
    shallow = nn.Sequential(*[m for c in convolutions for m in (c, xt.BatchNorm2d(32, activation="relu"))])
    return {"ResNet-20": xt.convert(build("ResNet-20"))[0], "2 layers": shallow}


def measure(rounds: int) -> Iterator[Row]:
    """Both passes over four batches."""
    data = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)) for k in range(4)]
    for name, net in _networks().items():
        net.eval()

        def evaluate(net: nn.Module = net) -> None:
            with torch.no_grad():
                for x in data:
                    net(x)

        def recalibrate(net: nn.Module = net) -> None:
            xt.recalibrate(net, data, progress=False)

        entries = {"evaluate": Entry(evaluate), "recalibrate": Entry(recalibrate)}
        for contestant, timing in race(entries, rounds).items():
            yield Row(name, "recalibrate", contestant, 0, *timing, ranks=1)
