"""A bias in front of a batch norm, which subtracts it again."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from torch import nn

SOURCE = "allenai/allennlp#4990"


def case(seed: int = 0) -> Case:
    """Convolutions with the bias that they have by default."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=80)
    return Case(
        "bias-before-batch-norm", model.eval(), batches(x, y, 32, seed)[:8], cross_entropy, severity="note"
    )
