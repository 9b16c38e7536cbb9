"""Batch renormalization, and groups, of a batch that is split over ranks."""

import pickle

import torch
import torch.distributed as dist
from claims import Claims, close, summed
from definition import Problem, definition, generator

import xhat.torch as xt

claim = Claims()


@claim
def a_split_batch_is_renormalized_as_a_whole() -> None:
    """y, gradients, running statistics and steps are those of one process; masks too."""
    g = generator("renorm")
    x = torch.randn(9, 4, 2, generator=g, dtype=torch.float64) * 2 + 0.5
    weights = torch.rand(9, 1, 2, generator=g, dtype=torch.float64) + 0.1
    v = torch.randn(x.shape, generator=g, dtype=torch.float64)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    rows = slice(rank, None, ranks)
    for mask in (None, weights):
        alone = xt.BatchRenorm1d(4, warmup=(1, 1), rmax=1.2, dmax=0.3).double()
        shared = xt.convert_sync(pickle.loads(pickle.dumps(alone)))
        shared = pickle.loads(pickle.dumps(shared))
        assert isinstance(shared, xt.SyncBatchNorm)
        for _ in range(3):
            mine, whole = x[rows].clone().requires_grad_(), x.clone().requires_grad_()
            y, expected = shared(mine, mask=None if mask is None else mask[rows]), alone(whole, mask=mask)
            close(y, expected[rows], 1e-12, "y")
            dx, *parameters = torch.autograd.grad((y * v[rows]).sum(), (mine, shared.weight, shared.bias))
            wanted_dx, *wanted = torch.autograd.grad((expected * v).sum(), (whole, alone.weight, alone.bias))
            close(dx, wanted_dx[rows], 1e-12, "dx")
            for got, want in zip(parameters, wanted, strict=True):
                close(summed(got), want, 1e-12, "parameters")
        for name, value in alone.state_dict().items():
            close(shared.state_dict()[name], value, 1e-12, name)
        assert (expected - torch.nn.functional.batch_norm(x, None, None, training=True)).abs().max() > 0.05


@claim
def a_group_is_that_of_all_ranks() -> None:
    x = torch.randn(dist.get_world_size(), 7, 4, generator=generator("groups"), dtype=torch.float64)
    shared = xt.convert_sync(xt.GhostBatchNorm1d(4, 3, momentum=1.0).double())
    y = shared(x[dist.get_rank()])
    for rows in ([0, 1, 2], [3, 5], [4, 6]):
        expected = definition(Problem(x[:, rows].flatten(0, 1))).y.unflatten(0, (-1, len(rows)))
        close(y[rows], expected[dist.get_rank()], 1e-12, rows)
    close(shared.running_mean, x.flatten(0, 1).mean(0), 1e-12, "running mean")


if __name__ == "__main__":
    claim.run()
