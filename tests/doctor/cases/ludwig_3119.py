"""The last batch of an epoch has one sample, and a batch norm without positions then has one value per channel."""

import torch
from data import batches, endless, table
from fitting import Case, cross_entropy, fit
from networks import mlp

SOURCE = "ludwig-ai/ludwig#3119"


def case(seed: int = 0) -> Case:
    """Wine has 178 samples: 177 are eleven batches of 16 and one sample."""
    torch.manual_seed(seed)
    model = mlp(13, 3, width=32)
    x, y = table("wine")
    fit(model, endless(x, y, 16, seed), steps=80)
    data = batches(x[:177], y[:177], 16, seed, last=True)
    return Case("one-value-per-channel", model.train(), data, cross_entropy, severity="risk")
