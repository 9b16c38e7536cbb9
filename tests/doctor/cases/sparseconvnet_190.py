"""NaN at test time only: one training batch had one value per channel, whose unbiased variance is 0/0."""

import torch
from data import batches, endless, table
from fitting import Case, cross_entropy, first, fit
from networks import mlp
from torch import Tensor, nn

SOURCE = "facebookresearch/SparseConvNet#190"


class Unchecked(nn.BatchNorm1d):
    """Without torch.nn's check that a batch has more than one value per channel."""

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return torch.batch_norm(
            x, self.weight, self.bias, mean, var, self.training, self.momentum or 0.0, self.eps, False
        )


def case(seed: int = 0) -> Case:
    """A perceptron for iris, whose loader ends with a batch of one sample."""
    torch.manual_seed(seed)
    model = mlp(4, 3, width=16, norm=Unchecked)
    x, y = table("iris")
    fit(model, endless(x, y, 16, seed), steps=60)
    with torch.no_grad():
        first(model, (x[:1], y[:1]))
    return Case("statistics-not-finite", model.eval(), batches(x, y, 25, seed), cross_entropy)
