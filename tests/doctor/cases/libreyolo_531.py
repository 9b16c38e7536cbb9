"""Two images on each device: the statistics of a batch scatter so much that training suffers."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual

SOURCE = "LibreYOLO/libreyolo#531"


def case(seed: int = 0) -> Case:
    """A small ResNet, pretrained, and fine-tuned with batches of 2; it is diagnosed as it trains."""
    torch.manual_seed(seed)
    model = residual(4, width=8)
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=80)
    fit(model, endless(x, y, 2, seed), steps=60, lr=1e-4)
    return Case("batches-too-small", model.train(), batches(x, y, 2, seed)[:60], cross_entropy)
