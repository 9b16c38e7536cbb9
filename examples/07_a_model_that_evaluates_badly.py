"""A fine-tuning whose averaged weights evaluate badly: the doctor says why, proves it, and repairs them."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import xhat.torch as xt

torch.manual_seed(0)
digits = load_digits()
x, labels = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
inverted = 1 - x + 0.1 * torch.randn_like(x)  # the new data: dark on bright, and noisy


class Block(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """y."""
        return self.norm(self.conv(x)).relu()


def train(model: nn.Module, data: torch.Tensor, average: nn.Module | None = None) -> None:
    """Trains the model on the first 1,400 digits, and averages its parameters."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(150):
        rows = torch.randperm(1400)[:64]
        optimizer.zero_grad()
        cross_entropy(model(data[rows]), labels[rows]).backward()
        optimizer.step()
        for mean, p in zip(average.parameters() if average else (), model.parameters(), strict=False):
            mean.data.lerp_(p.data, 0.05)  # here is the mistake: parameters() has no running statistics


def accuracy(model: nn.Module) -> float:
    """The share of the other digits that the model reads."""
    return (model.eval()(inverted[1400:]).argmax(1) == labels[1400:]).float().mean().item()


blocks = Block(1, 16, 1), Block(16, 32, 2), Block(32, 32, 1)
model = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
train(model, x)
average = copy.deepcopy(model)
train(model, inverted, average)
print(f"fine-tuned {accuracy(model):.1%}, its averaged weights {accuracy(average):.1%}\n")

loader = [(inverted[rows], labels[rows]) for rows in torch.randperm(1400).split(128)]
d = xt.diagnose(average, loader, lambda output, batch: cross_entropy(output, batch[1]), progress=False)
print(d)  # or d.to_html("doctor.html")
print(f"\n{d.treat()}\naveraged weights {accuracy(average):.1%}")
assert not d.healthy and accuracy(average) > 0.9
