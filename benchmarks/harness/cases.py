"""The cases that the benchmarks share: shapes from named networks, their layouts and dtypes.

No data, no library and no clock live here.
"""

from math import prod
from typing import NamedTuple

__all__ = ["CASES", "HALVED", "PASSES", "TINY", "Case"]

# forward: y from x; backward: dx, dgamma, dbeta from dy and the context; both: one after the other
PASSES = ("forward", "backward", "both")


class Case(NamedTuple):
    """One layer of a network; `shape` always has the channels second, `layout` says how it lies in memory."""

    network: str
    shape: tuple[int, ...]
    layout: str
    dtype: str = "float32"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the C-contiguous array: channels last for NHWC."""
        return (self.shape[0], *self.shape[2:], self.shape[1]) if self.layout == "NHWC" else self.shape

    @property
    def axis(self) -> int:
        """The channel axis of that array."""
        return len(self.shape) - 1 if self.layout == "NHWC" else 1

    @property
    def nbytes(self) -> int:
        """The bytes of one array of x's size."""
        return prod(self.shape) * (2 if self.dtype == "bfloat16" else 4)

    @property
    def name(self) -> str:
        """The shape as one word."""
        return "x".join(map(str, self.shape))

    @property
    def label(self) -> str:
        """Shape, layout and dtype."""
        return f"{self.name} {self.layout} {self.dtype}"


LAYERS = [
    ("ResNet-50, stem", (32, 64, 112, 112)),
    ("ResNet-50, stage 1", (32, 64, 56, 56)),
    ("ResNet-50, stage 1, block output", (32, 256, 56, 56)),
    ("VGG-16, block 5", (32, 512, 14, 14)),
    ("ResNet-18, stage 4", (32, 512, 7, 7)),
    ("ResNet-20 on CIFAR, stage 1", (128, 16, 32, 32)),
    ("an image, before any layer", (64, 3, 224, 224)),
    ("speech, 1,000 frames", (64, 128, 1000)),
    ("perceptron, batch 4,096", (4096, 256)),
    ("perceptron on digits", (64, 64)),
    ("a tiny image", (8, 16, 4, 4)),
]
HALVED = {(32, 64, 112, 112), (32, 64, 56, 56), (128, 16, 32, 32)}  # measured in bfloat16 as well


def _cases() -> list[Case]:
    found = []
    for dtype in ("float32", "bfloat16"):
        for network, shape in LAYERS:
            if dtype == "bfloat16" and shape not in HALVED:
                continue
            layouts = {4: ("NCHW", "NHWC"), 3: ("NCL",), 2: ("NC",)}[len(shape)]
            found += [Case(network, shape, layout, dtype) for layout in layouts]
    return found


CASES = _cases()

# The case of the cost of a call.
TINY = Case("a small perceptron", (32, 64), "NC")
