"""A driver that launches nothing, so that all of Triton's way to a launch runs without a GPU: compilation included.

Tensors of the CPU stand for those of the device. What a launch was given is recorded.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

__all__ = ["LAUNCHED", "Driver", "Launch", "elsewhere", "stand_in"]


class Launch(NamedTuple):
    """The kernel, the stream, and the current device."""

    name: str
    stream: int
    device: int


LAUNCHED: list[Launch] = []


class Utils:
    """What Triton needs to know of a device."""

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


class Launcher:
    """Records in place of launching."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, *arguments: Any) -> None:
        LAUNCHED.append(Launch(self.name, arguments[3], Driver.device))


class Driver(DriverBase):
    """An H100 that is not there; as many as there are streams."""

    utils, launcher_cls = Utils(), Launcher
    device = 0
    streams = (70, 71)  # the current one of each device

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
        return Driver.device

    def get_current_stream(self, device: int) -> int:
        return Driver.streams[device]


def stand_in() -> None:
    """Makes this driver Triton's, and tensors of the CPU those that its kernels compute."""
    import triton

    from xhat.torch import engines

    triton.runtime.driver.set_active(Driver())
    engines._interpreted = True
    engines.switched_on = True


def elsewhere(tensor: Tensor, device: torch.device) -> Any:
    """The tensor as a launch takes one of another device, which need not be here: by its address."""

    class Elsewhere:
        dtype, data_ptr = tensor.dtype, tensor.data_ptr

    Elsewhere.device = device  # type: ignore[attr-defined]
    return Elsewhere()
