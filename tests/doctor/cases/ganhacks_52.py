"""A discriminator gets batches of real images and batches of generated ones, each normalized by itself."""

import torch
from data import Batches, batches, patches
from fitting import Case, cross_entropy, first
from networks import convolutions
from torch.nn import functional as F

SOURCE = "soumith/ganhacks#52"


def pairs_of_kinds(size: int, seed: int) -> list[Batches]:
    """Pairs of a batch of patches (label 1) and a batch of patches that are blurred along one axis (label 0)."""
    x, _ = patches()
    blurred = F.avg_pool2d(x, (1, 5), 1, (0, 2), count_include_pad=False)
    ones, zeros = torch.ones(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long)
    real, generated = batches(x, ones, size, seed), batches(blurred, zeros, size, seed + 1)
    return [[a, b] for a, b in zip(real, generated, strict=True)]


def case(seed: int = 0) -> Case:
    """A step sums the losses of both kinds, as a step of a GAN does; then each batch is diagnosed by itself."""
    torch.manual_seed(seed)
    model = convolutions(3, 2, 2)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for epoch in range(6):
        for pair in pairs_of_kinds(32, seed + epoch):
            optimizer.zero_grad()
            torch.stack([cross_entropy(first(model, batch), batch) for batch in pair]).sum().backward()
            optimizer.step()
    data = [batch for pair in pairs_of_kinds(32, seed)[:8] for batch in pair]
    return Case("batches-not-alike", model.eval(), data, cross_entropy)
