"""Two forward passes before one backward pass under DistributedDataParallel, which sends buffers around before each."""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from claims import Claims
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import xhat.torch as xt

claim = Claims()
# torch 2.13 has another name for it.
KNOWN = inspect.signature(DistributedDataParallel.__init__).parameters
SEND = "forward_sync_buffers" if "forward_sync_buffers" in KNOWN else "broadcast_buffers"
STEPS = 3


def net(layer: Any) -> nn.Sequential:
    """The same on all ranks."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 4, 2), layer(4), nn.ReLU()).double()


def data() -> Tensor:
    """This rank's (steps, forwards, N, C, H, W)."""
    g = torch.Generator().manual_seed(10 + dist.get_rank())
    return torch.randn(STEPS, 2, 6, 3, 5, 4, generator=g, dtype=torch.float64)


def train(model: nn.Module, x: Tensor) -> None:
    """Two forwards, of an image and of another view of it, then one backward pass."""
    for views in x:
        one, other = (model(view) for view in views)
        (one.square().sum() + (one * other).sum()).backward()


def gradients(model: nn.Module) -> list[Tensor]:
    """Of all parameters."""
    return [p.grad for p in model.parameters() if p.grad is not None]


def wrapped(model: nn.Module, send: bool) -> nn.Module:
    """The model under DistributedDataParallel."""
    return DistributedDataParallel(model, **{SEND: send})


def alone(layer: Any) -> nn.Module:
    """The same training without DistributedDataParallel: this rank's share."""
    model = net(layer)
    train(model, data())
    return model


def gives_the_average(send: bool) -> None:
    """Each rank has the average of the gradients that the ranks have alone."""
    model, mine = net(xt.BatchNorm2d), alone(xt.BatchNorm2d)
    train(wrapped(model, send), data())
    assert model[1].num_batches_tracked == 2 * STEPS
    for got, share in zip(gradients(model), gradients(mine), strict=True):
        total = share.clone()
        dist.all_reduce(total)
        torch.testing.assert_close(got, total / dist.get_world_size())


@claim
def ours_takes_two_forwards_with_buffers_sent() -> None:
    gives_the_average(True)


@claim
def ours_takes_two_forwards_without() -> None:
    gives_the_average(False)


@claim
def torchs_takes_them_where_nothing_is_sent() -> None:
    train(wrapped(net(nn.BatchNorm2d), False), data())


@claim
def torchs_takes_them_since_the_wrapper_hides_what_it_does() -> None:
    """The trouble is over in torch 2.13: DistributedDataParallel changes buffers behind autograd's back.

    The layer itself still saves them; a change that autograd sees ends in an error (test_switching_buffers).
    """
    train(wrapped(net(nn.BatchNorm2d), True), data())


if __name__ == "__main__":
    claim.run()
