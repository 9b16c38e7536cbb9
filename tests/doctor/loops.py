"""A training loop with its watch: what the tests of `xt.watch` share."""

import torch
from torch import nn

import xhat.torch as xt

N, C = 16, 5


def network(kind=nn.BatchNorm2d, momentum=0.1):
    return nn.Sequential(
        nn.Conv2d(3, C, 3), kind(C, momentum=momentum), nn.ReLU(),
        nn.Conv2d(C, C, 3), kind(C, momentum=momentum), nn.Flatten(), nn.Linear(C * 4, 2),
    )  # fmt: skip


def batch(n=N):
    return torch.randn(n, 3, 6, 6)


class Loop:
    """A model, its optimizer, and the watch of both."""

    def __init__(self, model, with_optimizer=True, lr=0.01):
        self.model, self.optimizer = model, torch.optim.SGD(model.parameters(), lr=lr)
        self.watch = xt.watch(model, self.optimizer if with_optimizer else None)

    def step(self, x=None, call=None):
        self.optimizer.zero_grad()
        (call or self.model)(batch() if x is None else x).square().mean().backward()
        self.optimizer.step()

    def steps(self, count, **how):
        for _ in range(count):
            self.step(**how)

    def found(self):
        return {f.cause: f for f in self.watch.findings}


def hooks(loop):
    model = [h for m in loop.model.modules() for h in (*m._forward_pre_hooks, *m._forward_hooks)]
    return model + list(loop.optimizer._optimizer_step_post_hooks)
