"""Fine-tuning trains well and evaluates badly: every batch norm of the network was built with momentum 0."""

from functools import partial

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import nn

SOURCE = "Cadene/pretrained-models.pytorch#5"


def case(seed: int = 0) -> Case:
    """A plain 2-d network for parts of photographs; its statistics stay 0 and 1."""
    torch.manual_seed(seed)
    model = convolutions(3, 4, 2, norm=partial(nn.BatchNorm2d, momentum=0.0))
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=60)
    return Case("momentum", model.eval(), batches(x, y, 32, seed)[:8], cross_entropy)
