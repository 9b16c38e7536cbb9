"""Small models whose calls must not be fused, each for a reason that is not visible in a trace."""

import operator
import random

import torch
import torch.nn.functional as F
from blocks import Block, C
from torch import Tensor


class Aliased(Block):
    """A sum in place whose result is read by a second name."""

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
    """The module returns the normalized values as well as the activation."""

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


class CalledBetween(Block):
    """The same layer runs once more before the sum: the order of its two updates matters."""

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        r = self.conv2(self.bn1(x))
        return F.relu(y + r)


class IntoShortcut(Block):
    """A sum in place into the other term, which has a second name."""

    def forward(self, x):
        s = self.conv2(x)
        t = s
        s += self.bn1(self.conv1(x))
        return F.relu(s) + t


class Weighted(Block):
    def forward(self, x):
        return F.relu(torch.add(self.bn1(self.conv1(x)), x, alpha=2))


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
    """Reads a tensor that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.log = [torch.tensor(2.0)]

    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x))) * self.log[0]


class WithoutGrad(Block):
    @torch.no_grad()
    def forward(self, x):
        return F.relu(self.bn1(self.conv1(x)))


class OtherActivation(Block):
    def forward(self, x):
        return F.gelu(self.bn1(self.conv1(x)))


class Overloaded(Block):
    """A sum by a function that is not torch's."""

    def forward(self, x):
        return F.relu(operator.add(self.bn1(self.conv1(x)), x))
