"""The test calls eval() on the relation module and not on the embedding: the accuracy depends on the batch."""

import torch
from data import by_class, endless, patches
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import Tensor, nn

SOURCE = "floodsung/LearningToCompare_FSL#48"


class Relation(nn.Module):
    """An embedding and a module on top of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = convolutions(3, 24, 2)
        self.relation = nn.Sequential(nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relation(self.embedding(x))
        return out


def case(seed: int = 0) -> Case:
    """The queries of one class come together, as episodes give them."""
    torch.manual_seed(seed)
    model = Relation()
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=100)
    model.eval()
    model.embedding.train()
    return Case("train-mode-in-evaluation", model, by_class(x, y, 16, seed)[:20], cross_entropy)
