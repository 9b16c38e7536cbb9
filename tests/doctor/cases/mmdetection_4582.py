"""The score depends on the rank that evaluates: the statistics of a 1-d network differ between the ranks."""

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import distributed as dist

SOURCE = "open-mmlab/mmdetection#4582"


def case(seed: int = 0) -> Case:
    """The ranks have the same parameters, and statistics of batches of 4 that only they have seen."""
    torch.manual_seed(seed)
    model = convolutions(8, 10, 1)
    x, y = digit_sequences()
    fit(model, endless(x, y, 64, seed), steps=60)
    rank = dist.get_rank() if dist.is_initialized() else 0
    with torch.no_grad():
        for batch in batches(x, y, 4, seed + rank)[:40]:
            model(batch[0])
    return Case(
        "ranks-differ", model.eval(), batches(x, y, 64, seed)[:4], cross_entropy, how="ranks", severity="risk"
    )
