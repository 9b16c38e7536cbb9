"""The races on NumPy arrays: everyone on one case, what is fused, the number of threads, and the cost of a call."""

from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import xhat
from benchmarks.harness.cases import PASSES, TINY, Case
from benchmarks.harness.contest import Contestant, Entry, Timing, race, verify
from benchmarks.harness.problem import EPS, Problem, Variant, exact
from benchmarks.harness.rows import Row
from benchmarks.numpy import ours, rivals
from benchmarks.numpy.floor import Floor
from xhat import ops

__all__ = ["VARIANTS", "measure", "measure_call", "measure_fused", "measure_threads"]

VARIANTS = [
    Variant("relu", "relu"),
    Variant("leaky_relu", ("leaky_relu", 0.01)),
    Variant("silu", "silu"),
    Variant("residual + relu", "relu", residual=True),
]


def _rows(
    case: Case,
    variant: str,
    what: str,
    times: Mapping[str, Timing],
    errors: Mapping[str, float],
    threads: int,
) -> Iterator[Row]:
    setting = {"layout": case.layout, "dtype": case.dtype, "variant": variant}
    for name, time in times.items():
        used = 1 if name.endswith("1 thread") else threads
        error = errors.get(name, 0.0)
        yield Row(case.name, what, name, case.nbytes, *time, error, **setting, threads=used)


def _contest(
    case: Case,
    variant: str,
    contestants: Mapping[str, tuple[Contestant, Mapping[str, Any]]],
    rounds: int,
    threads: int,
) -> Iterator[Row]:
    """The three passes of a case; each contestant comes with the exact results that it has to give."""
    floor = Floor(case.nbytes, threads)
    for what in PASSES:
        entries = {} if what == "both" else {name: Entry(call) for name, call in floor.calls(what).items()}
        errors = {}
        for name, (contestant, truth) in contestants.items():
            if what in contestant.calls:
                errors[name] = verify(contestant, what, truth, case.dtype)
                entries[name] = Entry(contestant.calls[what], contestant.threads)
        yield from _rows(case, variant, what, race(entries, rounds), errors, threads)


def measure(case: Case, names: list[str], rounds: int, threads: int) -> Iterator[Row]:
    """Ours, the named rivals and the floors on one case, pass by pass."""
    problem = Problem.of(case)
    truth = exact(problem)
    found = [ours.contestant(problem)]
    for name in names:
        found += rivals.RIVALS[name][1](problem)
    yield from _contest(case, "none", {c.name: (c, truth) for c in found}, rounds, threads)


def measure_fused(case: Case, rounds: int, threads: int) -> Iterator[Row]:
    """What is fused against nothing fused."""
    problem = Problem.of(case).away_from_kinks(VARIANTS)
    found = {"xhat": (ours.contestant(problem), exact(problem))}
    for variant in VARIANTS:
        found[f"xhat {variant.name}"] = (ours.contestant(problem, variant), exact(problem, variant))
    yield from _contest(case, "fused", found, rounds, threads)


def measure_threads(case: Case, rounds: int, threads: int) -> Iterator[Row]:
    """One thread against two."""
    problem = Problem.of(case)
    truth = exact(problem)
    found = {
        name: (ours.contestant(problem, threads=n), truth)
        for n, name in ((1, "xhat 1 thread"), (2, "xhat 2 threads"))
    }
    yield from _contest(case, "threads", found, rounds, threads)


def measure_call(rounds: int, threads: int) -> Iterator[Row]:
    """The cost of one call on (32, 64): all of xhat.batch_norm, and kernel and binding alone."""
    problem = Problem.of(TINY)
    truth = exact(problem)
    contestant = ours.contestant(problem)
    # The arguments that the validation layer hands to the kernel, with which the kernel is then called alone.
    run = ops.run_forward
    with mock.patch.object(ops.kernels, "forward", wraps=run) as caught:
        contestant.calls["forward"]()
    y = contestant.outputs["forward"][0]

    def kernel() -> tuple[Any, ...]:
        run(*caught.call_args.args)
        return (y,)

    bare = Contestant(
        "kernel and binding", {"forward": kernel}, outputs={"forward": (y,)}, tolerance=ours.TOLERANCE
    )
    plain = Contestant(
        "xhat, results not preallocated",
        {"forward": lambda: xhat.batch_norm(problem.x, problem.gamma, problem.beta, eps=EPS)[:1]},
        tolerance=ours.TOLERANCE,
    )
    found = {c.name: c for c in (contestant, plain, bare)}
    if rivals.installed("torch"):
        found |= {c.name: c for c in rivals.RIVALS["torch"][1](problem) if "forward" in c.calls}
    errors = {name: verify(c, "forward", truth, TINY.dtype) for name, c in found.items()}
    times = race({name: Entry(c.calls["forward"]) for name, c in found.items()}, rounds)
    yield from _rows(TINY, "call", "forward", times, errors, threads)
