"""The default momentum of a layer is .001: the running statistics lag far behind, and the validation vibrates."""

from functools import partial

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import nn

SOURCE = "vacancy/Synchronized-BatchNorm-PyTorch#5"


def case(seed: int = 0) -> Case:
    """A 1-d network for digits as sequences, 100 steps."""
    torch.manual_seed(seed)
    model = convolutions(8, 10, 1, norm=partial(nn.BatchNorm1d, momentum=0.001))
    x, y = digit_sequences()
    fit(model, endless(x, y, 64, seed), steps=100)
    return Case("statistics-not-converged", model.eval(), batches(x, y, 64, seed)[:8], cross_entropy)
