"""A program for test_triton_launches: Triton's whole way to a launch, with a driver that launches nothing.

Prints a JSON object: launches of a pass, compilations after many shapes, and what the arguments were compiled as.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ["XHAT_TRITON"] = "1"

import torch
from torch.profiler import profile

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks.gpu.no_device import LAUNCHED, Driver, elsewhere, stand_in

READS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"}


def compilations() -> int:
    from xhat.torch.gpu import launch

    return len(launch._compiled)


def run(shape: tuple[int, ...], layout: str = "NCHW", **options: Any) -> tuple[list[str], list[str]]:
    """The launches of a forward and of a backward pass."""
    memory = torch.channels_last if layout == "NHWC" and len(shape) == 4 else torch.contiguous_format
    x = torch.randn(shape).contiguous(memory_format=memory).requires_grad_()
    weight, bias = torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True)
    LAUNCHED.clear()
    y = xt.batch_norm(x, None, None, weight, bias, True, **options)
    forward = names()
    LAUNCHED.clear()
    torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    return forward, names()


def launched(layer: Any, shape: tuple[int, ...]) -> list[str]:
    """The launches of a layer's forward pass."""
    LAUNCHED.clear()
    layer(torch.randn(shape))
    return names()


def names() -> list[str]:
    """The kernels that were launched."""
    return [launch.name for launch in LAUNCHED]


def reads(call: Any) -> int:
    """How often a call, in its second run, reads a value on the host."""
    call()
    with profile() as seen:
        call()
    return sum(event.count for event in seen.key_averages() if event.key in READS)


def step(layer: Any, **options: Any) -> Any:
    """A forward and a backward pass."""
    x = torch.randn(8, 16, 32, 64, requires_grad=True)
    return lambda: layer(x, **options).sum().backward()


def compiled() -> dict[str, Any]:
    """The launches of a compiled layer, and the values that its step reads, where the CPU stands for a device."""
    layer = torch.compile(xt.BatchNorm2d(16), backend="aot_eager", fullgraph=True)
    with patch.object(running_stats, "on_a_device", lambda t: isinstance(t, torch.Tensor)), \
         patch.object(functional, "on_a_device", lambda t: isinstance(t, torch.Tensor)):  # fmt: skip
        read = reads(step(layer))
        LAUNCHED.clear()
        layer(torch.randn(8, 16, 32, 64, requires_grad=True))
        return {"launches": names(), "reads": read, "tracked": int(layer.num_batches_tracked)}


def where_the_map_does_not_compile() -> dict[str, Any]:
    """What a layer has launched and counted when the compilation of its last kernel has failed."""
    layer = xt.BatchNorm2d(16, activation="silu")  # whose map was not compiled before
    with patch.object(maps.normalize, "warmup", side_effect=RuntimeError("does not compile")):
        try:
            launched(layer, (8, 16, 32, 64))
        except RuntimeError as error:
            return {"error": str(error), "launches": names(), "batches": int(layer.num_batches_tracked)}
    return {}


def on_another_device() -> list[Any]:
    """Where a kernel runs whose tensors are on device 1 while device 0 is the current one, and the current one then."""

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        Driver.device = wanted.index
        yield
        Driver.device = 0

    tensors = [torch.ones(4, dtype=torch.float64) for _ in range(5)]
    there = [elsewhere(t, torch.device("cuda", 1)) for t in tensors]
    constants = dict(COLUMNS=32, MOVED=1, COUNTED=False)
    arguments = (*there, there[0], 4, 0.1, 1.0, 0.0, 0.0)
    LAUNCHED.clear()
    with (
        patch.object(torch.cuda, "current_device", lambda: Driver.device),
        patch.object(torch.cuda, "device", device),
    ):
        for streams in ((70, 71), (70, 75)):
            Driver.streams = streams
            launch(merge.track, (1,), arguments, constants)
    return [[*LAUNCHED[0]], [*LAUNCHED[1]], Driver.device]


if __name__ == "__main__":
    stand_in()
    import xhat.torch as xt
    from xhat.torch import functional, running_stats
    from xhat.torch.gpu import maps, merge
    from xhat.torch.gpu.launch import launch

    said: dict[str, Any] = {
        "large": run((8, 16, 32, 64)),
        "large NHWC": run((8, 16, 32, 64), "NHWC"),
        "small": run((4, 8, 6, 4)),
    }
    layer = xt.BatchNorm2d(16)
    said["layer"] = launched(layer, (8, 16, 32, 64))
    said["small layer"] = launched(layer, (4, 16, 6, 4))
    layer.momentum = None
    said["average"] = launched(layer, (8, 16, 32, 64))
    said["function"] = launched(
        lambda x: xt.batch_norm(x, layer.running_mean, layer.running_var, training=True), (8, 16, 32, 64)
    )
    said["batches"] = int(layer.num_batches_tracked)  # type: ignore[arg-type]
    said["evaluation"] = launched(layer.eval(), (8, 16, 32, 64))
    before = compilations()
    for n in range(3, 53):
        run((n, 16, 32, 64))
    said["compilations for fifty batch sizes"] = compilations() - before
    said["reads"] = {
        "step": reads(step(xt.BatchNorm2d(16))),
        "average": reads(step(xt.BatchNorm2d(16, momentum=None))),
        "skip": reads(step(xt.BatchNorm2d(16, nonfinite="skip"))),
        "mask": reads(step(xt.BatchNorm2d(16), mask=torch.ones(8, 1, 32, 64, dtype=torch.bool))),
    }
    said["compiled"] = compiled()
    said["map that does not compile"] = where_the_map_does_not_compile()
    said["another device"] = on_another_device()
    print(json.dumps(said))
