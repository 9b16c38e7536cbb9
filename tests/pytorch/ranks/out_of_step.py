"""Ranks that are out of step, fail or have lost their group get an error that says so. On three ranks."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from claims import close, refused
from differences import CHANNELS, is_rank, x
from faults import disagreed, goes_on
from sharing import claim
from torch import nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.torch.errors import ExchangeError
from xhat.torch.sync import frames, shared_batch

# ------------------------------------------------------------------------------------------------------ out of step


@claim
def another_model_with_the_same_paths() -> None:
    """A rank that leaves out a step of the second model is in the first one, where its layer is '0' as well."""

    def model() -> nn.Sequential:
        return nn.Sequential(xt.SyncBatchNorm(CHANNELS))

    a, b = model(), model()
    for net in (a, b, a, b):
        net(x()).sum().backward()
    mine = a if is_rank(1) else b
    message = refused(ExchangeError, lambda: mine(x()))
    assert "the ranks disagree on the number (among the layers with this path, by first use) of" in message
    assert "on rank 1." in message and "Use the layers in the same order on all ranks." in message, message
    assert a[0].num_batches_tracked == b[0].num_batches_tracked == 2
    a(x())
    goes_on()


@claim
def a_model_that_failed_at_first_and_was_made_again_on_one_rank() -> None:
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
    wrong = torch.randn(4, CHANNELS, dtype=torch.float64 if is_rank(0) else torch.float32)
    refused(ExchangeError, lambda: net(wrong))
    if is_rank(0):
        net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
    net(x())


@claim
def backward_passes_in_another_order() -> None:
    """Two forward passes of one layer: their gradient sums have the same layer, kind and size."""
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
    for _ in range(2):
        losses = [net(x()).square().sum() for _ in range(2)]
        order = losses if is_rank(0) else losses[::-1]
        message = refused(ExchangeError, order[0].backward)
        assert "the ranks disagree on the forward pass of gradient sums of layer '0': checksum" in message
        assert "on ranks 1, 2." in message and "Run the backward passes of several forward passes" in message
    a, b = (net(x()).square().sum() for _ in range(2))
    b.backward()
    a.backward()
    goes_on()


@claim
def a_recomputed_forward_beside_a_first_one() -> None:
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))

    def checkpointed() -> None:
        checkpoint(net, x(), use_reentrant=False).sum().backward()

    def twice() -> None:
        net(x())
        net(x())

    message = refused(ExchangeError, checkpointed if is_rank(0) else twice)
    assert "disagree on the recomputation (activation checkpointing) of statistics of layer '0'" in message
    assert "True on rank 0; False on ranks 1, 2" in message
    goes_on()


@claim
def a_rank_that_leaves_out_steps_is_told_where_the_epoch_ends() -> None:
    """Its loader is shorter, or it evaluates. Until then no rank does anything that the others don't."""
    for evaluates in (False, True):
        net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))

        def epoch(left_out: int, net: nn.Module = net, evaluates: bool = evaluates) -> None:
            for _ in range(3 - left_out):
                net(x())
            if left_out and evaluates:
                net.eval()(x())
                net.train()
            xt.merge_running_statistics(net)

        epoch(0)
        before = copy.deepcopy(net.state_dict())
        xt.merge_running_statistics(net)  # of ranks in step
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        message = refused(ExchangeError, lambda: epoch(is_rank(1)))
        assert "the ranks make different exchanges: statistics of layer '0' on ranks 0, 2; " in message, (
            message
        )
        assert "running statistics of 1 layers" in message and "on rank 1. No state was changed." in message
        assert net[0].num_batches_tracked == 5
        goes_on()


@claim
def a_layer_that_one_rank_has_frozen() -> None:
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS), xt.SyncBatchNorm(CHANNELS))
    if is_rank(0):
        xt.freeze(net[0])
    disagreed(lambda: net(x()), "disagree on the layer", "'1' on rank 0; '0' on ranks 1, 2", layer=net)
    goes_on()


# ---------------------------------------------------------------------------------------- failures before an exchange


def stopped(rank: int, kind: type[BaseException], run: Callable[[], Any], what: str, why: str = "") -> None:
    """This rank raises its own error; the others are told at once."""
    if is_rank(rank):
        assert why in refused(kind, run)
    else:
        message = refused(ExchangeError, run)
        assert f"rank {rank} stopped before the exchange of {what}, by an error of its own" in message, (
            message
        )


@claim
def an_interrupt_before_an_exchange() -> None:
    for kind in (KeyboardInterrupt, SystemExit):
        net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
        with patch.object(shared_batch, "_moments", side_effect=kind) if is_rank(1) else patch("os.name"):
            stopped(1, kind, lambda net=net: net(x()), "statistics of layer '0'")
        assert net[0].num_batches_tracked == 0
        goes_on()


@claim
def an_interrupt_within_an_exchange_waits_for_its_end() -> None:
    """Before or after each of its collectives. The other ranks go on; and all agree on the size of the next frame."""
    original = frames._all_gather
    for collective, begun in ((0, False), (0, True), (1, False), (1, True)):
        net, rows = nn.Sequential(xt.SyncBatchNorm(77)), torch.randn(4, 77)
        frames._session("").capacity_after.clear()
        calls: list[int] = []

        def interrupted(
            *args: Any, at: int = collective, begun: bool = begun, calls: list[int] = calls, **more: Any
        ) -> Any:
            calls.append(len(calls))
            if calls[-1] != at:
                return original(*args, **more)
            if begun:
                original(*args, **more)
            raise KeyboardInterrupt

        if is_rank(0):
            with patch.object(frames, "_all_gather", interrupted):
                refused(KeyboardInterrupt, lambda net=net, rows=rows: net(rows))
            assert net[0].num_batches_tracked == 0
            net[0].num_batches_tracked.fill_(1)
        else:
            net(rows)
        net(rows).sum().backward()
        goes_on()


@claim
def an_interrupt_after_an_exchange_is_not_announced() -> None:
    """The other ranks have all values, and go on."""
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
    interrupted = is_rank(0)
    for name in ("merged", "added"):  # the forward pass, and the backward pass
        loss = net(x()).sum()
        with (
            patch.object(shared_batch, name, side_effect=KeyboardInterrupt)
            if interrupted
            else patch("os.name")
        ):
            run = (lambda net=net: net(x())) if name == "merged" else loss.backward
            refused(KeyboardInterrupt, run) if interrupted else run()
        net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
        goes_on()


@claim
def a_backward_pass_that_fails_before_its_exchange() -> None:
    """A saved tensor was changed in place, on one rank."""
    net = nn.Sequential(xt.SyncBatchNorm(CHANNELS))
    leaf = x()
    mine = leaf * 1
    loss = net(mine).square().sum()
    if is_rank(2):
        with torch.no_grad():
            mine.add_(1)
    stopped(2, RuntimeError, loss.backward, "gradient sums of layer '0'", "modified by an inplace operation")
    goes_on()


# ------------------------------------------------------------------------------------------- groups that are gone


@claim
def a_group_that_was_destroyed() -> None:
    group = dist.new_group()
    layer = xt.SyncBatchNorm(CHANNELS, process_group=group)
    layer(x())
    dist.destroy_process_group(group)
    disagreed(lambda: layer(x()), "the layer's process group", "was destroyed", layer=layer)
    layer.process_group = None
    layer(x())


@claim
def all_groups_destroyed_and_made_again() -> None:
    layer = xt.SyncBatchNorm(CHANNELS)
    layer(x()).sum().backward()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    loss = layer(x()).sum()
    dist.barrier()
    dist.destroy_process_group()
    told = "the layer has shared its batches with other ranks, and the default process group was destroyed"
    disagreed(lambda: layer(x()), told, "train a copy of the model", layer=layer)
    refused(ExchangeError, loss.backward)
    alone = copy.deepcopy(layer)
    batch = x()
    close(alone(batch), nn.BatchNorm1d(CHANNELS)(batch), 1e-6, "a copy")
    layer.eval()(x())
    store = dist.FileStore(str(Path(os.environ["XHAT_SAYS"], "again")), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    layer.train()(x()).sum().backward()
    assert layer.num_batches_tracked == 3
    goes_on()


if __name__ == "__main__":
    claim.run()
