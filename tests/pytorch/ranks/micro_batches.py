"""Exact micro-batches of a batch that is split over ranks: both at once."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from claims import Claims, close
from definition import generator
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import xhat.torch as xt
from xhat.errors import ArgumentError
from xhat.torch.errors import ExchangeError

claim = Claims()
SIZES = ([4, 2], [1, 2, 3])  # of the micro-batches of each rank


class Residual(nn.Module):
    """Two batch norms around a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn1 = nn.Conv1d(3, 3, 3, padding=1), nn.BatchNorm1d(3)
        self.second, self.bn2 = nn.Conv1d(3, 3, 3, padding=1), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        """relu(bn(conv(relu(bn(conv(x))))) + x)."""
        return torch.relu(self.bn2(self.second(torch.relu(self.bn1(self.first(x))))) + x)


def made() -> nn.Module:
    """The same on all ranks."""
    torch.manual_seed(5)
    parts = [nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), Residual(), Residual(), nn.Flatten(), nn.Linear(15, 2)]
    return nn.Sequential(*parts).double()


def loss(output: Tensor, batch: Any) -> Tensor:
    """The mean over the samples."""
    return mse_loss(output, batch[1])


def data() -> tuple[Tensor, Tensor]:
    """The samples of both ranks."""
    g = generator("micro-batches")
    return torch.randn(12, 2, 7, generator=g).double(), torch.randn(12, 2, generator=g).double()


def mine(of: Tensor) -> tuple[Tensor, ...]:
    """This rank's micro-batches."""
    rank = dist.get_rank()
    return of.split(6)[rank].split(SIZES[rank])


@claim
def micro_batches_of_all_ranks_are_one_batch() -> None:
    """Gradients, which DistributedDataParallel averages, and running statistics are those of one process."""
    x, t = data()
    alone, shared = made(), DistributedDataParallel(xt.convert_sync(made()))
    for _ in range(2):  # the second call adds to gradients that are averages already
        loss(alone(x), (x, t)).backward()
        got = xt.accumulate(shared, zip(mine(x), mine(t), strict=True), loss)
        everybody = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
        dist.all_gather(everybody, got)
        close(sum(everybody) / 2, loss(copy.deepcopy(alone)(x), (x, t)), 1e-12, "loss")
        for (name, p), q in zip(alone.named_parameters(), shared.module.parameters(), strict=True):
            close(q.grad, p.grad, 1e-12, name)
        for (name, b), c in zip(alone.named_buffers(), shared.module.buffers(), strict=True):
            close(c, b, 1e-12, name)


@claim
def gradients_are_averaged_once() -> None:
    """Without SyncBatchNorm, and with a hook that counts; an ordinary step of the wrapper works afterwards."""
    x, t = data()
    rank, calls = dist.get_rank(), []
    shared, alone = DistributedDataParallel(made()), made()
    shared.module[1].running_mean.fill_(float(rank))  # rank 0's are broadcast, as in each forward pass

    def counted(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        calls.append(bucket.index())
        done = dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future()
        return done.then(lambda f: f.value()[0])

    shared.register_comm_hook(None, counted)
    xt.accumulate(shared, zip(mine(x), mine(t), strict=True), loss)
    assert calls == sorted(set(calls)), calls
    for part in range(2):  # the mean over ranks
        own = made()
        loss(own(x.split(6)[part]), (x, t.split(6)[part])).backward()
        for p, q in zip(alone.parameters(), own.parameters(), strict=True):
            p.grad = q.grad / 2 + (0 if p.grad is None else p.grad)
        if part == rank:
            close(shared.module[1].running_mean, own[1].running_mean, 1e-12, "running mean")
    for (name, p), q in zip(alone.named_parameters(), shared.module.parameters(), strict=True):
        close(q.grad, p.grad, 1e-12, name)
    before = len(calls)
    shared(x[:6]).sum().backward()
    assert len(calls) > before


@claim
def a_rank_that_fails_is_reported_to_the_others() -> None:
    """By an error at once, with gradients and statistics as before."""
    x, t = data()
    model = xt.convert_sync(made())
    before = copy.deepcopy(model.state_dict())

    def failing(output: Tensor, batch: Any) -> Tensor:
        return output if dist.get_rank() == 1 else loss(output, batch)

    with pytest.raises(ArgumentError if dist.get_rank() == 1 else ExchangeError):
        xt.accumulate(model, zip(mine(x), mine(t), strict=True), failing)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


if __name__ == "__main__":
    claim.run()
