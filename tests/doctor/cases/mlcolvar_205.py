"""Dropout before batch norm: in evaluation the variance is smaller than the one that was learned."""

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from torch import nn

SOURCE = "luigibonati/mlcolvar#205"


def case(seed: int = 0) -> Case:
    """A perceptron for digits with dropout in every block."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for a, b in ((64, 64), (64, 64), (64, 64)):
        layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(b)]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    x, y = digit_sequences()
    x = x.flatten(1)
    fit(model, endless(x, y, 32, seed), steps=300)
    return Case("dropout-before-batch-norm", model.eval(), batches(x, y, 32, seed)[:20], cross_entropy)
