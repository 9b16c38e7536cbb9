"""A program for test_triton_launches: Triton's whole way to a launch, with a driver that launches nothing.

Prints a JSON object: launches of a pass, compilations after many shapes, and what the arguments were compiled as.
"""

import json
import os
from typing import Any

os.environ["XHAT_TRITON"] = "1"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

LAUNCHED: list[str] = []


class Utils:
    """What Triton needs to know of a device."""

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


class Launcher:
    """Counts in place of launching."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, *arguments: Any) -> None:
        LAUNCHED.append(self.name)


class Driver(DriverBase):
    """An H100 that is not there."""

    utils, launcher_cls = Utils(), Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


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
    forward = list(LAUNCHED)
    LAUNCHED.clear()
    torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    return forward, list(LAUNCHED)


def launched(layer: Any, shape: tuple[int, ...]) -> list[str]:
    """The launches of a layer's forward pass."""
    LAUNCHED.clear()
    layer(torch.randn(shape))
    return list(LAUNCHED)


if __name__ == "__main__":
    triton.runtime.driver.set_active(Driver())
    import xhat.torch as xt
    from xhat.torch import engines

    engines._interpreted = True  # tensors of the CPU stand for those of the device
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
    print(json.dumps(said))
