"""Stochastic weight averaging without a pass over the data: the average has the statistics of its first model."""

import torch
from data import batches, digit_images, endless
from fitting import Case, cross_entropy, fit
from networks import timm_model
from torch.optim.swa_utils import AveragedModel

SOURCE = "mosaicml/composer#624"


def case(seed: int = 0) -> Case:
    """A small ResNet of timm; the average begins after 20 steps."""
    torch.manual_seed(seed)
    model = timm_model("resnet10t", 10)
    x, y = digit_images(32)
    fit(model, endless(x, y, 32, seed), steps=12, lr=2e-3)
    average = AveragedModel(model)
    fit(
        model,
        endless(x, y, 32, seed + 1000),
        steps=24,
        lr=2e-3,
        after=lambda _: average.update_parameters(model),
    )
    return Case("statistics-of-other-weights", average.eval(), batches(x, y, 32, seed)[:6], cross_entropy)
