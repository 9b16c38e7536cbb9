"""Two views of each sample go through the encoder one after the other and not as one batch."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual
from torch import Tensor, nn

SOURCE = "rbalestr-lab/stable-pretraining#432"


class TwoViews(nn.Module):
    """A plain view and an augmented one: upside down, with the contrast and the brightness of an overexposed image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = residual(12)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        view = 0.4 * x.flip(2) + 2
        out: Tensor = self.head(torch.cat([self.encoder(x), self.encoder(view)], 1))
        return out


def case(seed: int = 0) -> Case:
    """Parts of photographs."""
    torch.manual_seed(seed)
    model = TwoViews()
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=60)
    return Case("layer-used-more-than-once", model.eval(), batches(x, y, 32, seed)[:8], cross_entropy)
