"""What is measured of xhat.torch: layers alone, in the forms that networks have them, and whole training steps.

No data, no library and no clock live here.
"""

from typing import NamedTuple

from benchmarks.harness.cases import CASES, HALVED, TINY, Case
from benchmarks.harness.command import RECYCLED
from benchmarks.harness.problem import Variant

__all__ = ["LAYERS", "MEMORIES", "NETS", "SAVED", "VARIANTS", "Layer", "Net"]

# The environment of a process, by where its memory comes from: glibc as it stands, or blocks that it keeps when they
# are freed. torch and xhat have the same in both.
MEMORIES = {"stock": {}, "reused": RECYCLED}

NONE, RELU, ADD_RELU = Variant("bn"), Variant("bn + relu", "relu"), Variant("bn + add + relu", "relu", True)
VARIANTS = (NONE, RELU, ADD_RELU)


class Layer(NamedTuple):
    """A batch norm alone, or with what follows it."""

    case: Case
    variant: Variant

    @property
    def label(self) -> str:
        """The case and the variant."""
        return f"{self.case.label} {self.variant.name}"


class Net(NamedTuple):
    """A network, the batch that it is trained on, and whether that lies with the channels last."""

    name: str
    batch: int
    pixels: int
    layout: str

    @property
    def label(self) -> str:
        """Name, batch and layout."""
        return f"{self.name}, batch {self.batch} of {self.pixels} px, {self.layout}"


# Beside the layers that the other benchmark has: those of ResNet-20's later stages, and what is near 64 KB.
SMALL = [
    ("ResNet-20 on CIFAR, stage 2", (128, 32, 16, 16)),
    ("ResNet-20 on CIFAR, stage 3", (128, 64, 8, 8)),
    ("an image of 4 x 4", (64, 64, 4, 4)),
    ("a small image of 4 x 4", (64, 16, 4, 4)),
]


def _layers() -> list[Layer]:
    cases = [case for case in CASES if case.dtype == "float32" or case.shape in HALVED]
    cases += [Case(name, shape, layout) for name, shape in SMALL for layout in ("NCHW", "NHWC")]
    cases += [Case("perceptron, 64 KB", (256, 64), "NC"), TINY]
    images = [case for case in cases if len(case.shape) == 4 and case.shape[1] > 3]
    return [Layer(case, NONE) for case in cases] + [
        Layer(case, variant) for case in images if case.dtype == "float32" for variant in VARIANTS[1:]
    ]


LAYERS = _layers()

# Where the tensors that autograd keeps are counted.
SAVED = Case("ResNet-50, stage 1", (32, 64, 56, 56), "NCHW")

NETS = [
    Net(name, batch, pixels, layout)
    for name, batch, pixels in (("ResNet-20", 128, 32), ("ResNet-18", 32, 112), ("DenseNet-121", 16, 112))
    for layout in ("NCHW", "NHWC")
]
