"""The networks whose training steps are timed, in plain torch, written as their papers and torchvision have them.

Nothing of xhat lives here.
"""

from collections.abc import Callable

import torch
from torch import nn

__all__ = ["BUILDERS", "build"]


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm around a shortcut (He et al., 2016, the basic block)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return self.relu(y)


def _resnet(stem: list[nn.Module], widths: list[int], depth: int) -> nn.Sequential:
    """A stem, stages of basic blocks, each but the first of half the size, and a classifier."""
    blocks: list[nn.Module] = []
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for place in range(depth):
            blocks.append(Block(inputs, width, 2 if stage and not place else 1))
            inputs = width
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def _imagenet_stem(width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]


def resnet20() -> nn.Module:
    """ResNet-20 for CIFAR: 16, 32 and 64 channels, three blocks each."""
    return _resnet([_convolution(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True)], [16, 32, 64], 3)


def resnet18() -> nn.Module:
    """ResNet-18: 64 to 512 channels, two blocks each."""
    return _resnet(_imagenet_stem(64), [64, 128, 256, 512], 2)


class DenseLayer(nn.Module):
    """Batch norm, ReLU, 1 x 1, batch norm, ReLU, 3 x 3; its result is appended to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _convolution(inputs, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), _convolution(4 * growth, growth, 3)
        self.relu1, self.relu2 = nn.ReLU(inplace=True), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x and what the layer adds."""
        y = self.conv1(self.relu1(self.norm1(x)))
        return torch.cat([x, self.conv2(self.relu2(self.norm2(y)))], 1)


def densenet121() -> nn.Module:
    """DenseNet-121: blocks of 6, 12, 24 and 16 layers of growth 32 (Huang et al., 2017)."""
    width, growth, parts = 64, 32, _imagenet_stem(64)
    for place, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            parts.append(DenseLayer(width, growth))
            width += growth
        if place < 3:
            parts += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), _convolution(width, width // 2, 1)]
            parts += [nn.AvgPool2d(2)]
            width //= 2
    parts += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(width, 10))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20": resnet20,
    "ResNet-18": resnet18,
    "DenseNet-121": densenet121,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A network in training mode; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return BUILDERS[name]()
