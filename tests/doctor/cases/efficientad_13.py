"""A pretrained network is no longer the original: a probe of zeros went through it in training mode."""

import torch
from data import batches, patches
from fitting import Case, cross_entropy, first, step
from networks import convolutions
from torch import nn

SOURCE = "nelson1425/EfficientAD#13"


class Student(nn.Module):
    """A pretrained backbone, used as it is, and a head that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = convolutions(3, 24, 2)
        self.head = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.backbone(x))
        return out


def loop(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A probe for the number of features, eval(), and then the training of the head."""
    with torch.no_grad():
        model.backbone(torch.zeros(2, 3, 16, 16))  # type: ignore[operator]
    model.backbone.eval()  # type: ignore[union-attr]
    x, y = patches()
    for batch in batches(x, y, 32)[:10]:
        step(model, optimizer, batch, cross_entropy)
    model.eval()
    with torch.no_grad():
        first(model, (x[:32], y[:32]))


def case(seed: int = 0) -> Case:
    """A plain 2-d network with a frozen backbone."""
    torch.manual_seed(seed)
    model = Student()
    model.backbone.requires_grad_(False)
    return Case(
        "frozen-but-moving",
        model,
        optimizer=torch.optim.SGD(model.head.parameters(), 0.1),
        how="watch",
        severity="risk",
        loop=loop,
    )
