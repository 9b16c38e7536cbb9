"""A batch with few values per channel: the normalized values depend on the neighbours more than on the sample."""

import torch
from data import batches, endless, table
from fitting import Case, cross_entropy, fit
from networks import mlp

SOURCE = "chainer/chainer#4433"


def case(seed: int = 0) -> Case:
    """A perceptron for breast cancer, first with batches of 64, then fine-tuned with batches of 3."""
    torch.manual_seed(seed)
    model = mlp(30, 2, width=48)
    x, y = table("breast_cancer")
    fit(model, endless(x, y, 64, seed), steps=80)
    fit(model, endless(x, y, 3, seed), steps=100, lr=1e-4)
    return Case("batches-too-small", model.train(), batches(x, y, 3, seed)[:80], cross_entropy)
