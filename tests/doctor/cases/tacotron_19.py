"""momentum=.99, as in TensorFlow, in a 1-d network with small batches."""

from functools import partial

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import nn

SOURCE = "r9y9/tacotron_pytorch#19"


def case(seed: int = 0) -> Case:
    """Digits as sequences, batches of 4, as a network for speech takes them."""
    torch.manual_seed(seed)
    model = convolutions(8, 10, 1, norm=partial(nn.BatchNorm1d, momentum=0.99))
    x, y = digit_sequences()
    fit(model, endless(x, y, 4, seed), steps=400, lr=4e-3)
    return Case("momentum", model.eval(), batches(x, y, 4, seed)[:40], cross_entropy)
