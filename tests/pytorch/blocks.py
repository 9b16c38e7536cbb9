"""Small models, each with one thing that a converter can get wrong."""

import operator
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 3


class Block(nn.Module):
    """A convolution, a batch norm, and what a subclass does with them."""

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
    """Collects what it computes, as encoders do, in branches that an attribute decides."""

    def forward(self, x):
        features = [x]
        if self.scale >= 1:
            x = self.bn1(self.conv1(x))
            x = self.relu(x)
            features.append(x)
        return features


class ByPart(Block):
    """Leaves its work to a method of its own."""

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


class Aliased(Block):
    """A sum in place that another name sees."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        z = y
        y += x
        return F.relu(z)


class UsedTwice(Block):
    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return F.relu(y) + y


class Inside(Block):
    """The normalized values leave the module beside the activation."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return {"pre": y, "post": F.relu(y)}


class InputChanges(Block):
    """The layer's input is overwritten between the layer and the sum."""

    def forward(self, x):
        x = x * 1.0
        y = self.bn1(x)
        r = self.relu(x)
        return F.relu(y + r)


class CalledTwice(Block):
    """Both terms come from the same layer: the second call can take the first one's result along."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        r = self.bn1(self.conv2(x))
        return F.relu(y + r)


class CalledBetween(Block):
    """The same layer runs once more before the sum: the order of its two updates matters."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        r = self.conv2(self.bn1(x))
        return F.relu(y + r)


class IntoShortcut(Block):
    """A sum in place, but into the other term, which has another name."""

    def forward(self, x):
        s = self.conv2(x)
        t = s
        s += self.bn1(self.conv1(x))
        return F.relu(s) + t


class Weighted(Block):
    def forward(self, x):
        return F.relu(torch.add(self.bn1(self.conv1(x)), x, alpha=2))


class Broadcast(Block):
    """The residual has one position: a sum that broadcasts."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return F.relu(y + x.mean((2, 3), keepdim=True))


class Promoted(Block):
    """The residual is wider than the layer's output, and the sum is not in place."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return F.relu(y + x.double())


class ByShape(Block):
    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return F.relu(y) if x.shape[0] > 1 else y


class ByArgument(Block):
    def forward(self, x, plain=False):
        y = self.bn1(self.conv1(x))
        return y if plain else F.relu(y)


class ByInstance(Block):
    def forward(self, x):
        y = self.bn1(self.conv1(x))
        return F.relu(y) if isinstance(x, Tensor) else y


class ByChance(Block):
    def forward(self, x):
        y = self.bn1(self.conv1(x))
        if random.random() < 2:
            y = F.relu(y)
        return y


class ByLoop(Block):
    def forward(self, x):
        for _ in range(2):
            x = F.relu(self.bn1(self.conv1(x)))
        return x


class SideEffect(Block):
    def forward(self, x):
        y = self.bn1(self.conv1(x))
        self.log.append(y.shape)
        return F.relu(y)


class Remembers(Block):
    def forward(self, x):
        self.last = x
        return F.relu(self.bn1(self.conv1(x)))


class Noise(Block):
    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x))) + torch.rand(C, 1, 1)


class Swapped(Block):
    """Reads a tensor that nobody can find by name."""

    def __init__(self) -> None:
        super().__init__()
        self.log = [torch.tensor(2.0)]

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x))) * self.log[0]


class WithoutGrad(Block):
    @torch.no_grad()
    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x)))


class Scaled(Block):
    """Freezes a number, reads a parameter and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((C, 1, 1), 0.5))
        self.register_buffer("shift", torch.full((C, 1, 1), 0.25))

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x))) * self.scale * self.gain + self.shift


class OtherActivation(Block):
    def forward(self, x):
        return F.gelu(self.bn1(self.conv1(x)))


class Own(Block):
    """An activation kept as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[..., Tensor] = F.relu

    def forward(self, x):
        return self.act(self.bn1(self.conv1(x)))


class Overloaded(Block):
    """A sum by another function."""

    def forward(self, x):
        return F.relu(operator.add(self.bn1(self.conv1(x)), x))


def sequence(*extra: nn.Module) -> nn.Sequential:
    """conv, bn, relu and what is given."""
    return nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU(inplace=True), *extra)
