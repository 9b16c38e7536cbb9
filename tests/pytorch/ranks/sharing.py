"""Threads, and other collectives, beside the exchanges of a layer. `out_of_step` runs these claims."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from claims import LIMIT, refused
from differences import CHANNELS, claim, is_rank, x
from faults import goes_on
from torch import nn

import xhat.torch as xt
from xhat.torch.errors import ExchangeError
from xhat.torch.sync import frames

__all__ = ["claim"]


class Watched:
    """A lock that sets `contended` when it is not free."""

    def __init__(self) -> None:
        self.lock, self.contended = threading.Lock(), threading.Event()

    def acquire(self, blocking: bool = True) -> bool:
        got = self.lock.acquire(blocking=blocking)
        if not got:
            self.contended.set()
        return got

    def release(self) -> None:
        self.lock.release()

    __enter__ = acquire

    def __exit__(self, *_: Any) -> None:
        self.release()


def in_thread(run: Callable[[], Any]) -> tuple[threading.Thread, list[str]]:
    """Runs this in a thread; the message of its error comes into the list."""
    said: list[str] = []

    def caught() -> None:
        try:
            run()
        except ExchangeError as error:
            said.append(str(error))

    thread = threading.Thread(target=caught)
    thread.start()
    return thread, said


@claim
def two_threads_of_one_rank() -> None:
    """Two collectives of one group at the same time would make gloo end the process."""
    one, other = (nn.Sequential(xt.SyncBatchNorm(c)) for c in (CHANNELS, 300))
    wide = torch.randn(4, 300)
    session = frames._session("")
    if is_rank(1):
        with patch.object(session, "lock", Watched()) as lock:
            a, said_a = in_thread(lambda: one(x()))
            while not lock.lock.locked():
                pass
            b, said_b = in_thread(lambda: other(wide))
            assert lock.contended.wait(LIMIT)
            dist.barrier()  # the others have waited for this
            a.join()
            b.join()
        assert not said_a
        message = said_b[0]
    else:
        dist.barrier()
        one(x())
        message = refused(ExchangeError, lambda: other(wide))
    assert "rank 1 made an exchange while another thread of that process made one" in message, message
    assert "give each thread a group of its own" in message
    assert one[0].num_batches_tracked == 1 and other[0].num_batches_tracked == 0
    goes_on()


@claim
def two_threads_with_groups_of_their_own() -> None:
    groups = [dist.new_group(timeout=timedelta(seconds=LIMIT)) for _ in range(2)]
    nets = [nn.Sequential(xt.SyncBatchNorm(CHANNELS, process_group=g)) for g in groups]

    def steps(net: nn.Module) -> None:
        for _ in range(20):
            net(x()).sum().backward()

    for net in nets:  # a process makes one group after the other
        net(x())
    started = [in_thread(lambda net=net: steps(net)) for net in nets]
    for thread, said in started:
        thread.join()
        assert not said, said
    assert [int(net[0].num_batches_tracked) for net in nets] == [21, 21]


@claim
def others_may_use_the_group() -> None:
    """At another time on each rank: the exchanges use a private copy of the group."""
    group = dist.new_group()
    layer = xt.SyncBatchNorm(CHANNELS, process_group=group)
    for step in range(4):
        total = torch.ones(1000 + step)
        if is_rank(step % 3):
            work = dist.all_reduce(total, group=group, async_op=True)
            layer(x())
        else:
            layer(x())
            work = dist.all_reduce(total, group=group, async_op=True)
        work.wait()
        assert (total == 3).all()
    assert layer.process_group is group
