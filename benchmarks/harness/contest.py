"""Verify, then time: the rules that are the same for every contestant.

A result that is not right to the contestant's tolerance raises Unverified, and nothing of it is timed. The
contestants of one pass take turns: in every round each has one turn, a turn being a short pause (in which the
threads of the one before go to sleep), untimed calls, and then as many calls as fill a few milliseconds. Every
round has an order of its own, drawn by lot: who always came after the same rival would find the caches as that
one leaves them. A time is the median over the rounds.

No library that is measured is imported here.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import ThreadpoolController

from benchmarks.harness.problem import Array

__all__ = ["RESULTS", "Contestant", "Entry", "Timing", "Unverified", "race", "verify"]

# What a call of each pass returns, in order.
RESULTS = {"forward": ("y",), "backward": ("dx", "dgamma", "dbeta"), "both": ("y", "dx", "dgamma", "dbeta")}
PAUSE = 0.015  # longer than the idle threads of an OpenMP go on spinning
TURN = 0.004  # seconds of calls in a turn, or one call if that is longer


class Unverified(Exception):
    """A contestant's result is not the exact one to its tolerance; it must not be timed."""


@dataclass(frozen=True)
class Contestant:
    """Someone who runs the passes of a problem.

    calls: pass to a function of no argument that returns what RESULTS names (and, last, possibly dresidual).
    to_numpy: from what a call returns to an array that lies as the problem's do.
    outputs: the preallocated results of each pass, filled with NaN before its verification, so that nothing
        stale can pass.
    tolerance: of float32 results, absolute for y and relative in the L2 norm for gradients; wide enough for torch's
        channels_last sums, which are off by 8e-4 at 3.2 million values a channel.
    """

    name: str
    calls: Mapping[str, Callable[[], tuple[Any, ...]]]
    to_numpy: Callable[[Any], Array] = np.asarray
    outputs: Mapping[str, tuple[Array, ...]] = field(default_factory=dict, repr=False)
    tolerance: float = 2e-3
    threads: int | None = None


class Entry(NamedTuple):
    """A call that takes part in a race, and the OpenMP threads it may use (None: as it stands)."""

    call: Callable[[], Any]
    threads: int | None = None


class Timing(NamedTuple):
    """Microseconds of a call: median, 20th and 80th percentile over the rounds."""

    median: float
    p20: float
    p80: float


def verify(contestant: Contestant, what: str, exact: Mapping[str, Array], dtype: str) -> float:
    """The worst relative error (L2) of a pass. Raises Unverified when a result is out of tolerance."""
    for array in contestant.outputs.get(what, ()):
        array.fill(np.nan)
    names = (*RESULTS[what], "dresidual")
    worst = 0.0
    for name, value in zip(names, contestant.calls[what](), strict=False):
        got = np.asarray(contestant.to_numpy(value)).astype(np.float64)
        expected = exact[name]
        error = _error(name, got, expected)
        # bfloat16 has 8 bits: rounding alone is 2^-9 of the value at most, 2^-8 for rounding twice.
        limit = contestant.tolerance + (2.0**-8 if dtype == "bfloat16" else 0)
        if not error <= limit:
            raise Unverified(
                f"{contestant.name}: {name} of the {what} pass is off by {error:.1e}, "
                f"expected at most {limit:.1e}."
            )
        norm = float(np.linalg.norm(expected))
        worst = max(worst, float(np.linalg.norm(got - expected)) / norm if norm else 0.0)
    return worst


def _error(name: str, got: Array, expected: Array) -> float:
    """The figure that is held against the tolerance; infinite for a wrong shape, NaN for a NaN."""
    if got.shape != expected.shape:
        return float("inf")
    if name == "y":
        return float(np.max(np.abs(got - expected) / np.maximum(1, np.abs(expected)), initial=0))
    return float(np.linalg.norm(got - expected) / max(float(np.linalg.norm(expected)), np.finfo(float).tiny))


def race(entries: Mapping[str, Entry], rounds: int) -> dict[str, Timing]:
    """The times of all entries, taken in turns."""
    pools, lots = ThreadpoolController(), random.Random(0)
    names = list(entries)
    times: dict[str, list[float]] = {name: [] for name in names}
    counts = {name: _count(entries[name], pools) for name in names}
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in lots.sample(names, len(names)):
                times[name].append(_turn(entries[name], counts[name], pools))
    finally:
        if collecting:
            gc.enable()
    return {
        name: Timing(*np.percentile(np.array(taken) * 1e6, (50, 20, 80)).tolist())
        for name, taken in times.items()
    }


def _count(entry: Entry, pools: ThreadpoolController) -> int:
    """How many calls fill a turn."""
    count = 1
    while True:
        spent = _turn(entry, count, pools) * count
        if spent >= TURN / 2 or count >= 1 << 16:
            return max(1, round(count * TURN / max(spent, 1e-9))) if spent < TURN else count
        count *= 4


def _turn(entry: Entry, count: int, pools: ThreadpoolController) -> float:
    """Seconds per call over `count` calls, after a pause and half as many untimed ones."""
    call = entry.call
    time.sleep(PAUSE)
    if entry.threads is None:
        return _calls(call, count)
    with pools.limit(limits=entry.threads, user_api="openmp"):
        return _calls(call, count)


def _calls(call: Callable[[], Any], count: int) -> float:
    for _ in range(1 + count // 2):
        call()
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count
