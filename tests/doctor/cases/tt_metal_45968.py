"""Images in channels last whose mean is large beside their deviation: the variance cancels."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import nn

SOURCE = "tenstorrent/tt-metal#45968"


def case(seed: int = 0) -> Case:
    """Photographs of low contrast on a bright ground go into a batch norm as they are: mean 3000, deviation 1."""
    torch.manual_seed(seed)
    x, y = patches()
    bright = (x + 3000).contiguous(memory_format=torch.channels_last)
    model = nn.Sequential(nn.BatchNorm2d(3), convolutions(3, 4, 2)).to(memory_format=torch.channels_last)
    fit(model, endless(bright, y, 32, seed), steps=200)
    return Case("digits-lost", model.eval(), batches(bright, y, 32, seed)[:8], cross_entropy, severity="risk")
