"""Five clients hold two digits each. Their models become one: parameters averaged, running statistics merged."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

import xhat.torch as xt

torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
x, labels = torch.tensor(digits.data[order] / 16).float(), torch.tensor(digits.target[order])
held_x, held_labels, x, labels = x[:449], labels[:449], x[449:], labels[449:]
clients = [(x[labels // 2 == k], labels[labels // 2 == k]) for k in range(5)]
samples = [len(pixels) for pixels, _ in clients]


def trained(model: nn.Module, pixels: torch.Tensor, targets: torch.Tensor) -> nn.Module:
    """A copy of the model after five steps on one client."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        rows = torch.randint(len(pixels), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels[rows]), targets[rows]).backward()
        optimizer.step()
    return model


def accuracy(model: nn.Module) -> float:
    """The share of held-out digits that the model tells."""
    with torch.no_grad():
        return (model.eval()(held_x).argmax(1) == held_labels).float().mean().item()


server = nn.Sequential(nn.Linear(64, 64), xt.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), xt.BatchNorm1d(64),
                       nn.ReLU(), nn.Linear(64, 10))  # fmt: skip
for _ in range(20):
    models = [trained(server, *client) for client in clients]
    server.load_state_dict(xt.average(models, weights=samples))

plain, stay, recalibrated = (copy.deepcopy(server) for _ in range(3))
for name, value in plain.named_buffers():
    states = [model.state_dict()[name] for model in models]
    value.copy_(sum(n * state for n, state in zip(samples, states, strict=True)) / sum(samples))
for layer in (stay[1], stay[4]):
    layer.reset_running_stats()
xt.recalibrate(recalibrated.eval(), [x], progress=False)
print(f"parameters alone are averaged    {accuracy(stay):.3f}")
print(f"variances are averaged           {accuracy(plain):.3f}")
print(f"statistics are merged            {accuracy(server):.3f}")
print(f"and recalibrated                 {accuracy(recalibrated):.3f}")
ratios = [(model[1].running_var / recalibrated[1].running_var).mean().item() for model in (plain, server)]
print(f"the first layer's variance, averaged: {ratios[0]:.2f} of the true one; merged: {ratios[1]:.2f}")
