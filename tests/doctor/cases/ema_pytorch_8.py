"""The averaged copy of a generator is made before training, and gets the parameters and no buffers."""

import copy

import torch
from data import batches, endless, noisy
from fitting import Case, fit, squares
from networks import convolutions
from torch import Tensor, nn

SOURCE = "lucidrains/ema-pytorch#8"


class Generator(nn.Module):
    """A vector to an image of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = convolutions(3, 24, 2, width=8)
        layers: list[nn.Module] = [
            nn.Unflatten(1, (24, 1, 1)),
            nn.ConvTranspose2d(24, 32, 4),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        ]
        for a, b in ((32, 16), (16, 8)):
            layers += [nn.ConvTranspose2d(a, b, 4, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
        self.decoder = nn.Sequential(*layers, nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.encoder(x))
        return image


def case(seed: int = 0) -> Case:
    """An encoder and a generator; the average moves by .1 a step."""
    torch.manual_seed(seed)
    model = Generator()
    average = copy.deepcopy(model)

    def move(_: int) -> None:
        for a, p in zip(average.parameters(), model.parameters(), strict=True):
            a.data.lerp_(p.data, 0.1)

    x, y = noisy(sigma=0.1)
    fit(model, endless(x, y, 16, seed), squares, steps=60, after=move)
    return Case("statistics-never-updated", average.eval(), batches(x, y, 16, seed)[:8], squares)
