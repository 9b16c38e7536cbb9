"""The measurements of one rank: a layer, a stack of layers, and the exchange alone, on this rank and on all.

Everything is verified before it is timed, and all ranks meet at a barrier before each time.
"""

import os
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import xhat.torch as xt
from benchmarks.harness.rows import Row
from xhat.torch.sync import frames
from xhat.torch.sync.frames import FrameHeader

__all__ = ["measure"]

SHAPES = ((32, 64, 56, 56), (32, 256, 14, 14), (64, 512, 4, 4), (128, 64))  # of each rank's part
CHANNELS = (8, 64, 512, 2048, 8192, 32768)
DEPTH, WIDTH = 20, 64  # of the stack


class Traffic:
    """What is sent in a call."""

    def __init__(self, run: Callable[[], Any]) -> None:
        self.sent: list[int] = []
        before = frames._all_gather

        def counted(out: Tensor, frame: Tensor, **more: Any) -> Any:
            self.sent.append(frame.nbytes)
            return before(out, frame, **more)

        frames._all_gather = counted
        try:
            run()
        finally:
            frames._all_gather = before


def timed(what: str, case: str, contestants: dict[str, Callable[[], Any]], rounds: int) -> list[Row]:
    """The contestants in turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    sent = {}
    for name, run in contestants.items():
        for _ in range(3):  # by then every frame has its size
            run()
        sent[name] = Traffic(run).sent
    for _ in range(rounds):
        for name, run in contestants.items():
            dist.barrier()
            start = perf_counter()
            run()
            times[name].append((perf_counter() - start) * 1e6)
    rows = []
    for name, t in times.items():
        cuts = quantiles(t, n=5)
        traffic = {"ranks": dist.get_world_size(), "collectives": len(sent[name])}
        rows.append(Row(case, what, name, sum(sent[name]), median(t), cuts[0], cuts[3], **traffic))
    return rows


def step_of(layer: nn.Module, x: Tensor, dy: Tensor) -> Callable[[], Any]:
    """Forward and backward."""
    leaf = x.clone().requires_grad_()

    def step() -> Tensor | None:
        leaf.grad = None
        layer(leaf).backward(dy)
        return leaf.grad

    return step


def layers(rounds: int) -> list[Row]:
    """One layer, on its own and on all ranks; of equal parts, so that both must give the same."""
    rows = []
    for shape in SHAPES:
        g = torch.Generator().manual_seed(0)
        x, dy = (torch.randn(shape, generator=g) for _ in range(2))
        local = xt.BatchNorm2d(shape[1]) if len(shape) == 4 else xt.BatchNorm1d(shape[1])
        steps = {"local": step_of(local, x, dy), "synchronized": step_of(xt.SyncBatchNorm(shape[1]), x, dy)}
        a, b = (step() for step in steps.values())
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        rows += timed("layer", "x".join(map(str, shape)), steps, rounds)
    return rows


def stack(rounds: int) -> list[Row]:
    """Many layers with next to nothing between: what a network's exchanges cost together."""
    x, dy = torch.randn(8, WIDTH, 4, 4), torch.randn(8, WIDTH, 4, 4)
    local = nn.Sequential(*[xt.BatchNorm2d(WIDTH) for _ in range(DEPTH)])
    many = nn.Sequential(*[xt.SyncBatchNorm(WIDTH) for _ in range(DEPTH)])
    steps = {"local": step_of(local, x, dy), "synchronized": step_of(many, x, dy)}
    return timed("stack", f"{DEPTH} layers of {WIDTH}", steps, rounds)


def collectives(rounds: int) -> list[Row]:
    """The exchange alone, as the layer makes it; and gloo's all-gather and all-reduce of as many bytes."""
    rows = []
    for c in CHANNELS:
        numbers, k = torch.randn(2 * c, dtype=torch.float64), dist.get_world_size()
        header = FrameHeader("sums", f"{c} channels", c)
        out = torch.empty(2 * c * k, dtype=torch.float64)
        mine = frames.gather(numbers.numpy(), header, "")[dist.get_rank()]
        assert (mine == numbers.numpy()).all()
        runs: dict[str, Callable[[], Any]] = {
            "exchange": lambda n=numbers, h=header: frames.gather(n.numpy(), h, ""),  # type: ignore[misc]
            "all-gather": lambda n=numbers, o=out: frames._all_gather(o, n),  # type: ignore[misc]
            "all-reduce": lambda n=numbers: dist.all_reduce(n, op=dist.ReduceOp.MAX),  # type: ignore[misc]
        }
        for row in timed("collective", f"{16 * c} bytes", runs, rounds):
            rows.append(row._replace(collectives=1, nbytes=16 * c))
    return rows


def _let_gloo_first() -> None:
    """In real time (chrt) nobody preempts his like, and gloo's threads, which exist by now, are to preempt this one."""
    if hasattr(os, "sched_getparam") and (priority := os.sched_getparam(0).sched_priority) > 1:
        os.sched_setparam(0, os.sched_param(priority - 1))


def measure(rounds: int) -> Iterator[Row]:
    """All of it, on every rank alike."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    frames._session("")
    _let_gloo_first()
    if dist.get_world_size() > 1:
        yield from collectives(rounds)
    yield from layers(rounds)
    yield from stack(rounds)
    dist.destroy_process_group()
