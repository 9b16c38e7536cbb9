"""Two domains, each in batches of its own: one pair of running moments fits neither."""

import torch
from data import Batches, batches, digit_sequences
from fitting import Case, cross_entropy, fit
from networks import convolutions

SOURCE = "KaiyangZhou/Dassl.pytorch#53"


def two_domains(size: int, seed: int) -> Batches:
    """Digits as they are, and with another contrast and brightness, in turn."""
    x, y = digit_sequences()
    other = -0.5 * x + torch.linspace(2, -2, 8)[:, None]
    pairs = zip(batches(x, y, size, seed), batches(other, y, size, seed + 1), strict=True)
    return [batch for pair in pairs for batch in pair]


def case(seed: int = 0) -> Case:
    """A 1-d network."""
    torch.manual_seed(seed)
    model = convolutions(8, 10, 1)
    for epoch in range(3):
        fit(model, two_domains(64, seed + epoch))
    return Case("batches-not-alike", model.eval(), two_domains(64, seed)[:14], cross_entropy)
