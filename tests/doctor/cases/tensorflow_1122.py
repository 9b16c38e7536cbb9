"""The moving averages are never updated: training normalizes by the batch in a function that does not know of them."""

import torch
from data import batches, endless, noisy
from fitting import Case, fit, squares
from networks import UNet
from torch import Tensor, nn
from torch.nn import functional as F

SOURCE = "tensorflow/tensorflow#1122"


class Forgetful(nn.BatchNorm2d):
    """A batch norm whose update is left out."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )


def case(seed: int = 0) -> Case:
    """A U-Net that removes noise."""
    torch.manual_seed(seed)
    model = UNet(width=6, norm=Forgetful)
    x, y = noisy()
    fit(model, endless(x, y, 16, seed), squares, steps=50, lr=1e-2)
    return Case("statistics-never-updated", model.eval(), batches(x, y, 16, seed)[:8], squares)
