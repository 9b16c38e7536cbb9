"""A wide network that was trained for a few steps: the training loss is far below the loss of the same data in eval."""

import torch
from data import batches, table
from networks import mlp
from training import Case, fit, squares

SOURCE = "chemprop/chemprop#607"


def case(seed: int = 0) -> Case:
    """Regression of diabetes; eight steps leave the initial statistics two fifths of their weight."""
    torch.manual_seed(seed)
    model = mlp(10, 1, width=300, depth=4)
    data = batches(*table("diabetes"), 55, seed)
    fit(model, data, squares, lr=3e-3, steps=8)
    return Case("statistics-not-converged", model.eval(), data, squares)
