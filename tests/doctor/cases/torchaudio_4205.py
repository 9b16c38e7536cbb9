"""The output for a recording depends on the padding of its batch: zeros at the end are part of the statistics."""

import torch
from data import digit_sequences
from fitting import Case, cross_entropy, fit
from torch import Tensor, nn
from torch.nn import functional as F

SOURCE = "pytorch/audio#4205"


def padded(size: int, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Sequences of 3 to 8 digits' columns each three times as long, with zeros behind them up to the longest one."""
    generator = torch.Generator().manual_seed(seed)
    x, y = digit_sequences()
    found = []
    for _ in range(count):
        rows = torch.randint(len(x), (size,), generator=generator)
        lengths = torch.randint(8, 33, (size,), generator=generator)
        batch = F.interpolate(x[rows], 32) + 1
        batch = batch * (torch.arange(32) < lengths[:, None])[:, None]
        found.append((batch, y[rows]))
    return found


class Speech(nn.Module):
    """Convolutions over time without biases, so that padding stays zero, and the mean over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(8, 32, 1, bias=False)
        self.bn1 = nn.BatchNorm1d(32)
        self.conv2 = nn.Conv1d(32, 48, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm1d(48)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.head(torch.relu(self.bn2(self.conv2(x))).mean(-1))
        return out


def case(seed: int = 0) -> Case:
    """Half of a batch is padding, more or less."""
    torch.manual_seed(seed)
    model = Speech()
    fit(model, padded(32, 100, seed))
    return Case("padding-counted", model.eval(), padded(32, 8, seed), cross_entropy, severity="risk")
