"""Data that are far from zero: the mean and the variance of the first batch norm lose their digits."""

import torch
from data import batches, endless, table
from fitting import Case, cross_entropy, fit
from networks import mlp
from torch import nn

SOURCE = "davisking/dlib#3113"


def case(seed: int = 0) -> Case:
    """Wine, whose features have the offset of a time stamp: 2e5 deviations."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.BatchNorm1d(13), mlp(13, 3, width=32))
    x, y = table("wine")
    fit(model, endless(x + 2e5, y, 32, seed), steps=300)
    return Case("digits-lost", model.eval(), batches(x + 2e5, y, 32, seed), cross_entropy, severity="risk")
