"""Each batch has one class, in training too: the network trains, and the evaluation is no better than chance."""

import torch
from data import by_class, table
from fitting import Case, cross_entropy, fit
from networks import mlp

SOURCE = "Panda-Peter/visda2019-multisource#1"


def case(seed: int = 0) -> Case:
    """A perceptron for breast cancer whose batches are benign or malignant."""
    torch.manual_seed(seed)
    model = mlp(30, 2, width=48, depth=3)
    x, y = table("breast_cancer")
    for epoch in range(12):
        fit(model, by_class(x, y, 32, seed + epoch))
    return Case("batches-not-alike", model.eval(), by_class(x, y, 32, seed), cross_entropy)
