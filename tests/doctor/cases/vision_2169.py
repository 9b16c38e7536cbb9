"""Frozen batch norms without eps: where the running variance is tiny, the gain explodes."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, first, fit
from networks import residual
from pytorch.architectures import torchvision
from torch import nn

import xhat.torch as xt

SOURCE = "pytorch/vision#2169"


def frozen(model: nn.Module) -> None:
    """Every batch norm becomes a FrozenBatchNorm2d with eps = 0."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            other = torchvision().ops.FrozenBatchNorm2d(child.num_features, eps=0.0)
            other.load_state_dict(child.state_dict())
            setattr(model, name, other)
        else:
            frozen(child)


def case(seed: int = 0) -> Case:
    """A small ResNet; three filters have died in training."""
    torch.manual_seed(seed)
    model = residual(4)
    x, y = patches()
    model[3].conv1.weight.data[[1, 4, 6]] *= 1e-7
    alive = ~torch.isin(torch.arange(8), torch.tensor([1, 4, 6]))
    model[3].conv1.weight.register_hook(lambda g: g * alive[:, None, None, None])
    fit(model, endless(x, y, 32, seed), steps=100)
    xt.recalibrate(model, batches(x, y, 32, seed), forward=first)  # as after many more steps
    frozen(model)
    return Case("dead-channels", model.eval(), batches(x, y, 32, seed)[:8], cross_entropy, severity="risk")
