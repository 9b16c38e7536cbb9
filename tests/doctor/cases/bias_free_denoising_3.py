"""A denoiser gets worse when it is loaded: a conversion to SyncBatchNorm has replaced its own class of batch norms."""

import torch
from data import batches, endless, noisy
from fitting import Case, fit, squares
from torch import Tensor, nn

SOURCE = "LabForComputationalVision/bias_free_denoising#3"


class BiasFree(nn.BatchNorm2d):
    """Divides by the deviation, and subtracts no mean."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_var is not None
        if self.training:
            var = x.var((0, 2, 3), correction=0)
            self.running_var.lerp_(var.detach(), self.momentum or 0.0)
        else:
            var = self.running_var
        return x * (self.weight / torch.sqrt(var + self.eps))[:, None, None]


class Denoiser(nn.Module):
    """Four convolutions; the output is the input less the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = BiasFree(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = BiasFree(16)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn3 = BiasFree(16)
        self.out = nn.Conv2d(16, 3, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = torch.relu(self.bn3(self.conv3(y)))
        clean: Tensor = x - self.out(y)
        return clean


def case(seed: int = 0) -> Case:
    """Patches with noise; the network was converted before its training, so it is right until the class comes back."""
    torch.manual_seed(seed)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Denoiser())
    x, y = noisy()
    fit(model, endless(x, y, 16, seed), squares, steps=100, lr=1e-2)
    return Case("class-replaced", model.eval(), batches(x, y, 16, seed)[:8], squares, severity="risk")
