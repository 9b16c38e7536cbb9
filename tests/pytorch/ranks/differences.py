"""Ranks that differ in an option or a count get an error that says so. `out_of_step` runs these claims."""

import copy
import warnings

import torch
import torch.distributed as dist
from claims import Claims
from faults import disagreed, goes_on
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt

claim = Claims()
CHANNELS = 5


def x() -> Tensor:
    return torch.randn(4, CHANNELS, requires_grad=True)


def is_rank(rank: int) -> bool:
    return dist.get_rank() == rank


def widened(layer: nn.Module) -> None:
    layer.running_mean, layer.running_var = layer.running_mean.double(), layer.running_var.double()


def untracked(layer: nn.Module) -> None:
    layer.track_running_stats = False


def without_bias(layer: nn.Module) -> None:
    layer.bias = None


def frozen(layer: nn.Module) -> None:
    xt.freeze(layer, statistics=False)


@claim
def options_that_do_not_reach_the_equations() -> None:
    """How the running statistics move, and which parameters there are."""
    for name, change, mine, others in (
        ("momentum", lambda layer: setattr(layer, "momentum", 0.5), "0.5", "0.1"),
        ("momentum", lambda layer: setattr(layer, "momentum", None), "None", "0.1"),
        ("running_correction", lambda layer: setattr(layer, "running_correction", 0), "0", "1"),
        ("nonfinite", lambda layer: setattr(layer, "nonfinite", "skip"), "'skip'", "'propagate'"),
        ("running statistics", widened, "torch.float64", "torch.float32"),
        ("running statistics", untracked, "None", "torch.float32"),
        ("parameters", without_bias, "'weight'", "'weight and bias'"),
        ("frozen_affine", frozen, "True", "False"),
    ):
        net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
        if is_rank(0):
            change(net[0])
        said = f"disagree on the {name} of statistics of layer '0': {mine} on rank 0; {others} on ranks 1, 2."
        disagreed(lambda net=net: net(x()), said, layer=net)
        goes_on()


@claim
def options_that_are_not_used_are_not_compared() -> None:
    layer = xt.SyncBatchNorm(CHANNELS, track_running_stats=False, momentum=0.1 * (dist.get_rank() + 1))
    layer(x())
    layer = xt.SyncBatchNorm(CHANNELS)
    layer.momentum = 0.1 * (dist.get_rank() + 1)
    xt.recalibrate(layer, [x().detach()], progress=False)  # it does not use momentum


@claim
def a_checkpoint_of_another_step() -> None:
    """num_batches_tracked has one value on all ranks that have trained together."""
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
    for _ in range(3):
        net(x())
    older = copy.deepcopy(net.state_dict())
    net(x())
    if is_rank(2):
        net.load_state_dict(older)
    said = (
        "disagree on the num_batches_tracked of statistics of layer '0': 4 on ranks 0, 1; 3 on rank 2.",
        "Load the same checkpoint on all ranks, or call xhat.torch.merge_running_statistics.",
    )
    disagreed(lambda: net(x()), *said, layer=net)
    xt.merge_running_statistics(net)
    net(x())
    assert net[0].num_batches_tracked == 5
    net.load_state_dict(older)  # on all ranks
    net(x())


@claim
def what_one_rank_may_do_alone() -> None:
    """Evaluate (with or without gradients), copy, save, have fewer rows, or no row at all."""
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS), nn.Linear(CHANNELS, CHANNELS), xt.SyncBatchNorm(CHANNELS))
    for step in range(6):
        if step % 3 == dist.get_rank():
            net.eval()
            net(x()).sum().backward()
            with torch.no_grad():
                net(x())
            copy.deepcopy(net).eval()(x())
            net.train()
        rows = 0 if is_rank(1) and step == 4 else 4 - dist.get_rank()
        y = net(x()[:rows])
        (checkpoint(net, x(), use_reentrant=False) if step == 5 else y).sum().backward()
    assert net[0].num_batches_tracked == 7


@claim
def ranks_that_run_a_graph_beside_ranks_that_do_not() -> None:
    """A graph sends the same headers, without num_batches_tracked, which it does not know."""
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS), xt.SyncBatchNorm(CHANNELS))
    with warnings.catch_warnings(action="ignore"):  # torch's own
        model = torch.compile(net, backend="eager", fullgraph=True) if is_rank(1) else net
        for _ in range(3):
            model(x()).square().sum().backward()
        assert net[1].num_batches_tracked == 3
        if is_rank(1):
            net[0].momentum = 0.5
        said = "disagree on the momentum of statistics of layer '0': 0.1 on ranks 0, 2; 0.5 on rank 1."
        disagreed(lambda: model(x()), said, layer=net)
    goes_on()
