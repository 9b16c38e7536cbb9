"""Ranks score differently: each has averaged its own batches, and nothing has merged the running statistics."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual
from torch import distributed as dist

SOURCE = "facebookresearch/fvcore#152"


def case(seed: int = 0) -> Case:
    """A small ResNet; the parameters are those of rank 0, and each rank has seen its own part of the photographs."""
    torch.manual_seed(seed)
    model = residual(4)
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=30)
    rank = dist.get_rank() if dist.is_initialized() else 0
    own = y % 2 == rank
    with torch.no_grad():
        for batch in batches(x[own], y[own], 32, seed):
            model(batch[0])
    return Case(
        "ranks-differ", model.eval(), batches(x, y, 32, seed)[:4], cross_entropy, how="ranks", severity="risk"
    )
