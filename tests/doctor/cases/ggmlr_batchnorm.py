"""Batches of one class each in training mode score below an untrained network, while evaluation mode is right."""

import torch
from data import by_class, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual

SOURCE = "ggmlR, example of batch norm"


def case(seed: int = 0) -> Case:
    """A ResNet that was trained on mixed batches, and a loader that sorts."""
    torch.manual_seed(seed)
    model = residual(4)
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=100)
    return Case(
        "batches-not-alike", model.eval(), by_class(x, y, 32, seed)[:16], cross_entropy, severity="risk"
    )
