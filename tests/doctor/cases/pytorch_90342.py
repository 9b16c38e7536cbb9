"""One batch with an infinite value: training goes on, and the running statistics are NaN for ever."""

import torch
from data import batches, endless, noisy
from fitting import Case, first, fit, squares
from networks import UNet

SOURCE = "pytorch/pytorch#90342"


def case(seed: int = 0) -> Case:
    """A U-Net; the step of the bad batch is skipped, as a gradient scaler does."""
    torch.manual_seed(seed)
    model = UNet(width=6)
    x, y = noisy()
    fit(model, endless(x, y, 16, seed), squares, steps=50, lr=1e-2)
    bad = x[:16].clone()
    bad[3, 1, 4, 4] = float("inf")
    with torch.no_grad():
        first(model, (bad, y[:16]))
    fit(model, endless(x, y, 16, seed + 1), squares, steps=20, lr=1e-2)
    return Case("statistics-not-finite", model.eval(), batches(x, y, 16, seed)[:8], squares)
