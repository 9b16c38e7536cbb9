"""The levels of a detector's pyramid share a head with its batch norms: one pair of moments for all levels."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import Tensor, nn

SOURCE = "open-mmlab/mmdetection#6515"


class Pyramid(nn.Module):
    """Three levels, whose features have different scales, through one head; the mean of the three answers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.levels = nn.ModuleList(nn.Conv2d(16, 16, 3, 2, 1) for _ in range(2))
        self.head = convolutions(16, 4, 2, width=16, depth=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(x)
        for level in self.levels:
            x = 4 * torch.relu(level(x)) + 2
            out = out + self.head(x)
        return out / 3


def case(seed: int = 0) -> Case:
    """Parts of photographs."""
    torch.manual_seed(seed)
    model = Pyramid()
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=120)
    return Case("layer-used-more-than-once", model.eval(), batches(x, y, 32, seed)[:8], cross_entropy)
