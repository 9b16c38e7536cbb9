"""A wide network that was trained for a few steps: the training loss is far below the loss of the same data in eval."""

import torch
from data import batches, table
from fitting import Case, fit, squares
from networks import mlp

SOURCE = "chemprop/chemprop#607"


def case(seed: int = 0) -> Case:
    """Regression of diabetes; ten steps leave the initial statistics a third of their weight."""
    torch.manual_seed(seed)
    model = mlp(10, 1, width=300, depth=5)
    data = batches(*table("diabetes"), 55, seed)
    fit(model, data + data, squares, lr=1e-2, steps=10)
    return Case("statistics-not-converged", model.eval(), data, squares)
