"""Small networks of many kinds: each case damages one of them."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


def mlp(
    inputs: int, outputs: int, width: int = 64, depth: int = 2, norm: Norm = nn.BatchNorm1d
) -> nn.Sequential:
    """Linear, batch norm and ReLU, `depth` times."""
    sizes = [inputs] + [width] * depth
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), norm(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def convolutions(
    inputs: int, outputs: int, dimensions: int, width: int = 16, depth: int = 3, norm: Norm | None = None
) -> nn.Sequential:
    """Convolution, batch norm and ReLU over 1, 2 or 3 dimensions, then the mean over them and a linear layer."""
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dimensions]
    norm = norm or {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dimensions]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[dimensions]
    sizes = [inputs] + [width * 2**k for k in range(depth)]
    layers: list[nn.Module] = []
    for k, (a, b) in enumerate(pairwise(sizes)):
        layers += [conv(a, b, 3, stride=1 + k % 2, padding=1, bias=False), norm(b), nn.ReLU()]
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(sizes[-1], outputs))


class Block(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, inputs: int, channels: int, stride: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = norm(channels)
        same = stride == 1 and inputs == channels
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), norm(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(y))))
        return torch.relu(y + self.shortcut(x))


def residual(outputs: int, width: int = 8, blocks: int = 1, norm: Norm = nn.BatchNorm2d) -> nn.Sequential:
    """A ResNet for small images: a stem, three stages, the mean, a linear layer. `blocks` = 3 makes it a ResNet-20."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), norm(width), nn.ReLU()]
    inputs = width
    for stage in range(3):
        for block in range(blocks):
            layers.append(Block(inputs, width * 2**stage, 2 if stage and not block else 1, norm))
            inputs = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


class UNet(nn.Module):
    """Two levels down and up, with skip connections: an image to an image."""

    def __init__(self, channels: int = 3, width: int = 12, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.first = self._pair(channels, width, norm)
        self.second = self._pair(width, 2 * width, norm)
        self.bottom = self._pair(2 * width, 4 * width, norm)
        self.third = self._pair(6 * width, 2 * width, norm)
        self.fourth = self._pair(3 * width, width, norm)
        self.head = nn.Conv2d(width, channels, 1)
        self.down, self.up = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)

    @staticmethod
    def _pair(a: int, b: int, norm: Norm) -> nn.Sequential:
        layers: list[nn.Module] = []
        for c in (a, b):
            layers += [nn.Conv2d(c, b, 3, padding=1, bias=False), norm(b), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.second(self.down(a))
        y = self.up(self.bottom(self.down(b)))
        y = self.up(self.third(torch.cat([y, b], 1)))
        out: Tensor = self.head(self.fourth(torch.cat([y, a], 1)))
        return out


def timm_model(name: str, outputs: int, **options: Any) -> nn.Module:
    """A network of timm's with random parameters."""
    from pytorch.architectures import torchvision

    torchvision()
    from timm import create_model

    return create_model(name, num_classes=outputs, **options)  # type: ignore[no-any-return]


def norms(model: nn.Module) -> list[Any]:
    """The batch norms of a model, in their order."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
