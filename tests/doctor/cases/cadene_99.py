"""A channel with the gain 999.9: its filter is dead, and its running variance is 1.9e-14."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, first, fit
from networks import convolutions

import xhat.torch as xt

SOURCE = "Cadene/pretrained-models.pytorch#99"


def case(seed: int = 0) -> Case:
    """A 2-d network; the filters of two channels are 1e-8 of what they were, and the statistics follow."""
    torch.manual_seed(seed)
    model = convolutions(3, 4, 2)
    x, y = patches()
    model[3].weight.data[[5, 11]] *= 1e-8
    model[3].weight.register_hook(lambda g: g * (torch.arange(32) % 6 != 5)[:, None, None, None])
    fit(model, endless(x, y, 32, seed), steps=100)
    xt.recalibrate(model, batches(x, y, 32, seed), forward=first)  # as after many more steps
    return Case("dead-channels", model.eval(), batches(x, y, 32, seed)[:8], cross_entropy, severity="risk")
