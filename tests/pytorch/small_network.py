"""A small network in which every kind of call is fused, and the same with torch's layers."""

import copy

import torch
from blocks import C, Residual
from comparing import made
from torch import Tensor, nn

import xhat.torch as xt

X = torch.randn(4, C, 6, 5, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """A stem, two residual blocks, one of them with a convolution as its shortcut, and a head with a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), nn.SiLU(inplace=True))
        self.blocks = nn.Sequential(Residual(), Residual())
        self.blocks[1].downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C))
        self.head, self.norm = nn.Linear(C, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.head(self.blocks(self.stem(x)).mean((2, 3)))))


def trained() -> nn.Module:
    """A network whose running statistics are no zeros and ones."""
    model = made(Network).float()
    with torch.no_grad():
        for i in range(3):
            model(X * (1 + i) + 0.3 * i)
    return model.eval()


def pair() -> tuple[nn.Module, nn.Module]:
    """The same network with xhat's layers, and with torch's."""
    theirs = trained()
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert [c.fused for c in changes if c.fused] == ["silu", *["relu", "add, relu"] * 2, "relu"]
    return ours, theirs


def close(ours: nn.Module, theirs: nn.Module, x: Tensor = X) -> None:
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
