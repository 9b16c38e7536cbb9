"""A random mask before batch norm, as a function and not as a layer."""

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from torch import Tensor, nn
from torch.nn import functional as F

SOURCE = "dstamoulis/single-path-nas#11"


class Masked(nn.Module):
    """Three convolutions; whole channels are dropped before each batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(a, b, 3, padding=1) for a, b in ((8, 32), (32, 32), (32, 64)))
        self.norms = nn.ModuleList(nn.BatchNorm1d(c) for c in (32, 32, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = torch.relu(norm(F.dropout1d(torch.relu(conv(x)), 0.4, self.training)))
        out: Tensor = self.head(x.mean(-1))
        return out


def case(seed: int = 0) -> Case:
    """Digits as sequences."""
    torch.manual_seed(seed)
    model = Masked()
    x, y = digit_sequences()
    fit(model, endless(x, y, 64, seed), steps=150)
    return Case("dropout-before-batch-norm", model.eval(), batches(x, y, 64, seed)[:10], cross_entropy)
