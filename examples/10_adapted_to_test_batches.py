"""Digits that are scanned darker than those of the training: evaluation by statistics merged with the test batches'."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import xhat.torch as xt

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
x, labels = torch.tensor(digits.data[order] / 16).float(), torch.tensor(digits.target[order])
held_x, held_labels, x, labels = x[:448], labels[:448], x[448:], labels[448:]

model = nn.Sequential(nn.Linear(64, 64), xt.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), xt.BatchNorm1d(64),
                      nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(150):
    rows = torch.randint(len(x), (64,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x[rows]), labels[rows]).backward()
    optimizer.step()
model.eval()

dark = 0.3 * held_x + 0.5 + 0.05 * torch.randn(held_x.shape)


def accuracy(images: torch.Tensor, size: int) -> float:
    """The share of digits that the model tells, in batches of this size."""
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in images.split(size)])
    return (found == held_labels).float().mean().item()


print(f"as in training                       {accuracy(held_x, 16):.3f}")
print(f"darker                               {accuracy(dark, 16):.3f}")
for mode, prior in (("blend", 16), ("blend", 0), ("pooled", 16), ("exponential", 16)):
    with xt.adapt(model, mode, prior=prior):
        print(
            f"adapted, {mode:11} prior {prior:2}:  {accuracy(dark, 16):.3f}, in batches of 4 {accuracy(dark, 4):.3f}"
        )
print(f"no longer adapted                    {accuracy(held_x, 16):.3f}")

# Tent: one step on the entropy of each batch, for weight and bias of the batch norms alone.
with xt.adapt(model, prior=0) as adaptation:
    steps, right = torch.optim.SGD(adaptation.parameters(), lr=0.05), 0
    for batch, expected in zip(dark.split(16), held_labels.split(16), strict=True):
        p = model(batch).softmax(1)
        right += int((p.argmax(1) == expected).sum())
        steps.zero_grad()
        (-(p * p.log()).sum(1).mean()).backward()
        steps.step()
print(f"with Tent                            {right / len(dark):.3f}")
