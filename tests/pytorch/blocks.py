"""Small models whose calls can be fused, each written in a different way."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 3


class Block(nn.Module):
    """Convolutions and batch norms, which each subclass calls in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(C, C, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(C)
        self.bn2 = nn.BatchNorm2d(C)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        self.scale = 1.5
        self.log: list[Any] = []


class ByModule(Block):
    def forward(self, x):
        return self.relu(self.bn1(self.conv1(x)))


class ByFunction(Block):
    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class ByTorch(Block):
    def forward(self, x):
        return torch.relu(self.bn1(self.conv1(x)))


class ByMethod(Block):
    def forward(self, x):
        return self.bn1(self.conv1(x)).relu_()


class Leaky(Block):
    def __init__(self) -> None:
        super().__init__()
        self.leaky = nn.LeakyReLU(0.2)

    def forward(self, x):
        y = self.leaky(self.bn1(self.conv1(x)))
        return F.leaky_relu(self.bn2(self.conv2(y)), 0.3)


class Silu(Block):
    def __init__(self) -> None:
        super().__init__()
        self.silu = nn.SiLU(inplace=True)

    def forward(self, x):
        y = self.silu(self.bn1(self.conv1(x)))
        return F.silu(self.bn2(self.conv2(y)))


class Residual(Block):
    """torchvision's block: one ReLU called at two places, a sum in place, a branch that may be missing."""

    def forward(self, x):
        identity = x
        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)
        out = self.conv2(out)
        out = self.bn2(out)
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Functional(Block):
    """The block of hand-written CIFAR networks."""

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = torch.add(x, out)
        return F.relu(out)


class Listing(Block):
    """Collects features in a list, as encoders do, in a branch on an attribute."""

    def forward(self, x):
        features = [x]
        if self.scale >= 1:
            x = self.bn1(self.conv1(x))
            x = self.relu(x)
            features.append(x)
        return features


class ByPart(Block):
    """Calls another method of its own."""

    def forward(self, x):
        return self.features(x).mean((2, 3))

    def features(self, x):
        return self.relu(self.bn1(self.conv1(x)))


class ByMode(Block):
    """Does one thing in training and another in evaluation."""

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.training:
            x = F.dropout(x, 0.5, self.training)
        return x


class CalledTwice(Block):
    """Both terms come from the same layer: the second call can add the result of the first."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        r = self.bn1(self.conv2(x))
        return F.relu(y + r)


class Broadcast(Block):
    """The residual has one position, so the sum broadcasts."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return F.relu(y + x.mean((2, 3), keepdim=True))


class Promoted(Block):
    """The residual is wider than the layer's output, and the sum is not in place."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return F.relu(y + x.double())


class Scaled(Block):
    """Reads a number, which becomes a guard, a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((C, 1, 1), 0.5))
        self.register_buffer("shift", torch.full((C, 1, 1), 0.25))

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x))) * self.scale * self.gain + self.shift


class Own(Block):
    """An activation kept as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[..., Tensor] = F.relu

    def forward(self, x):
        return self.act(self.bn1(self.conv1(x)))


def sequence(*extra: nn.Module) -> nn.Sequential:
    """conv, bn, relu, then `extra`."""
    return nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU(inplace=True), *extra)
