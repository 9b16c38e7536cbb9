"""Two forward passes in a fixed order share a batch norm, whose running statistics fit neither."""

import torch
from data import batches, clips, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import Tensor, nn

SOURCE = "miss-alignment#6"


class Siamese(nn.Module):
    """The first and the second half of a film; the second half is darker."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = convolutions(3, 12, 3, width=8, depth=2)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.branch(x[:, :, :2]), self.branch(0.2 * x[:, :, 2:] - 4)
        out: Tensor = self.head(torch.cat([a, b], 1))
        return out


def case(seed: int = 0) -> Case:
    """A 3-d network."""
    torch.manual_seed(seed)
    model = Siamese()
    x, y = clips()
    fit(model, endless(x, y, 16, seed), steps=150, lr=1e-2)
    return Case("layer-used-more-than-once", model.eval(), batches(x, y, 16, seed)[:12], cross_entropy)
