"""track_running_stats=False hides a fault: evaluation uses the statistics of its batch, which is small."""

from functools import partial

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import nn

SOURCE = "Lightning-AI/pytorch-lightning#14085"


def case(seed: int = 0) -> Case:
    """A 1-d network, trained with batches of 64 and evaluated with batches of 2."""
    torch.manual_seed(seed)
    model = convolutions(8, 10, 1, norm=partial(nn.BatchNorm1d, track_running_stats=False))
    x, y = digit_sequences()
    fit(model, endless(x, y, 64, seed), steps=80)
    return Case("train-mode-in-evaluation", model.eval(), batches(x, y, 2, seed)[:60], cross_entropy)
