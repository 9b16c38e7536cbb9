"""The cases of the GPU benchmark: the batch norms of ResNet-50, and how to make their tensors. No clock lives here."""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CHECKED", "TENSORS", "TIMED", "Case", "made"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tensors of x's size that a pass has to read or write: forward, backward.
TENSORS = {"bn": (3, 5), "bn+relu": (3, 5), "bn+add+relu": (4, 8)}


class Case(NamedTuple):
    """A batch norm: shape, dtype, layout, what follows it, and the offset of x in standard deviations."""

    shape: tuple[int, int, int, int]
    dtype: str = "float32"
    layout: str = "NHWC"
    kind: str = "bn"
    offset: float = 0.0

    @property
    def nbytes(self) -> int:
        """The bytes of x."""
        n, c, h, w = self.shape
        return n * c * h * w * DTYPES[self.dtype].itemsize

    @property
    def label(self) -> str:
        """The case in words."""
        return f"{'x'.join(map(str, self.shape))} {self.dtype} {self.layout} {self.kind}"


# Channels, side, and what follows, of the kinds of layers that ResNet-50 has.
_LAYERS = ((64, 112, "bn+relu"), (64, 56, "bn+relu"), (256, 56, "bn+add+relu"), (128, 28, "bn+relu"),
           (512, 28, "bn+add+relu"), (256, 14, "bn+relu"), (1024, 14, "bn+add+relu"), (512, 7, "bn+relu"),
           (2048, 7, "bn+add+relu"), (2048, 7, "bn"))  # fmt: skip
_BATCHES = (
    (64, "bfloat16", "NHWC"),
    (256, "bfloat16", "NHWC"),
    (64, "float32", "NHWC"),
    (64, "float32", "NCHW"),
)

TIMED = [
    Case((n, channels, side, side), dtype, layout, kind)
    for n, dtype, layout in _BATCHES
    for channels, side, kind in _LAYERS
] + [Case((64, 16, 4, 4)), Case((4096, 256, 1, 1), layout="NCHW")]

_PRECISIONS = (("float32", 0.0), ("float32", 1e4), ("float32", 1e6), ("bfloat16", 0.0), ("float16", 10.0))
CHECKED = [
    Case(shape, dtype, layout, kind, offset)
    for shape in ((64, 64, 56, 56), (64, 512, 7, 7), (32, 3, 33, 31), (1024, 96, 1, 1))
    for layout in ("NHWC", "NCHW")
    for dtype, offset in _PRECISIONS
    for kind in (("bn", "bn+relu", "bn+add+relu") if offset == 0 else ("bn",))
]


class Tensors(NamedTuple):
    """What a case is computed from."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    dy: Tensor


def made(case: Case, device: str, seed: int = 0) -> Tensors:
    """Normal numbers in the layout of the case."""
    generator = torch.Generator(device).manual_seed(seed)
    memory = torch.channels_last if case.layout == "NHWC" else torch.contiguous_format

    def normal(offset: float = 0.0) -> Tensor:
        numbers = torch.randn(case.shape, device=device, generator=generator) + offset
        return numbers.to(DTYPES[case.dtype]).contiguous(memory_format=memory)

    channels = case.shape[1]
    weight = torch.rand(channels, device=device, generator=generator) + 0.5
    bias = torch.randn(channels, device=device, generator=generator)
    residual = normal() if "add" in case.kind else None
    return Tensors(normal(case.offset), weight, bias, residual, normal())
