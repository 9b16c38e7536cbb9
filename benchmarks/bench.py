"""`python -m benchmarks.bench`: verify every result, time it, print tables, and write the results file.

A run without --quick, --only, --rivals or --no-write replaces benchmarks/results/<machine>.csv and .md and
the table in README.md. The process starts itself again with malloc's thresholds raised (glibc on Linux), so
that freed memory is recycled instead of returned to the system and faulted in again, which is to the rivals'
good: xhat's results are preallocated.
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console

import xhat
from benchmarks import ours, rivals
from benchmarks.cases import CASES, FUSED, PASSES, QUICK, TINY, Case
from benchmarks.contest import QUIET, Contestant, Entry, Timing, race, verify
from benchmarks.floor import Floor
from benchmarks.problem import EPS, Problem, Variant, exact
from benchmarks.report import document, print_race, print_verdicts, readme_table
from benchmarks.results import RESULTS_FOLDER, ROOT, Row, fill, index, machine, read, slug, write
from benchmarks.targets import verdicts
from xhat import ops

__all__ = ["main", "measure", "measure_call", "measure_fused", "measure_threads", "write_all"]

RECYCLE = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "67108864",
}
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
) -> list[Row]:
    key = (case.name, case.layout, case.dtype, variant, what)
    return [
        Row(
            *key, name, 1 if name.endswith("1 thread") else threads, case.nbytes, *time, errors.get(name, 0.0)
        )
        for name, time in times.items()
    ]


def _contest(
    case: Case,
    variant: str,
    contestants: Mapping[str, tuple[Contestant, Mapping[str, Any]]],
    rounds: int,
    threads: int,
) -> Iterator[list[Row]]:
    """The three passes of a case; each contestant comes with the exact results that it has to give."""
    floor = Floor(case.nbytes, threads)
    for what in PASSES:
        entries = {} if what == "both" else {name: Entry(call) for name, call in floor.calls(what).items()}
        errors = {}
        for name, (contestant, truth) in contestants.items():
            if what in contestant.calls:
                errors[name] = verify(contestant, what, truth, case.dtype)
                entries[name] = Entry(contestant.calls[what], contestant.threads)
        yield _rows(case, variant, what, race(entries, rounds), errors, threads)


def measure(case: Case, names: list[str], rounds: int, threads: int) -> Iterator[list[Row]]:
    """Ours, the named rivals and the floors on one case, pass by pass."""
    problem = Problem.of(case)
    truth = exact(problem)
    found = [ours.contestant(problem)]
    for name in names:
        found += rivals.RIVALS[name][1](problem)
    yield from _contest(case, "none", {c.name: (c, truth) for c in found}, rounds, threads)


def measure_fused(case: Case, rounds: int, threads: int) -> Iterator[list[Row]]:
    """What is fused against nothing fused."""
    problem = Problem.of(case).away_from_kinks(VARIANTS)
    found = {"xhat": (ours.contestant(problem), exact(problem))}
    for variant in VARIANTS:
        found[f"xhat {variant.name}"] = (ours.contestant(problem, variant), exact(problem, variant))
    yield from _contest(case, "fused", found, rounds, threads)


def measure_threads(case: Case, rounds: int, threads: int) -> Iterator[list[Row]]:
    """One thread against two."""
    problem = Problem.of(case)
    truth = exact(problem)
    found = {
        name: (ours.contestant(problem, threads=n), truth)
        for n, name in ((1, "xhat 1 thread"), (2, "xhat 2 threads"))
    }
    yield from _contest(case, "threads", found, rounds, threads)


def measure_call(rounds: int, threads: int) -> Iterator[list[Row]]:
    """The cost of one call on (32, 64): all of xhat.batch_norm, and kernel and binding without the gate."""
    problem = Problem.of(TINY)
    truth = exact(problem)
    contestant = ours.contestant(problem)
    # What a repeated call asks of the binding is caught on its way, and asked again.
    with mock.patch.object(ops, "CALLS", wraps=ops.CALLS) as caught:
        contestant.calls["forward"]()
    (asked,), _ = caught.forward.call_args
    y = contestant.outputs["forward"][0]

    def kernel() -> tuple[Any, ...]:
        ran = ops.CALLS.forward(asked)
        assert ran is not None, "the call was not remembered, and has run nothing"
        return ran[:1]

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
    yield _rows(TINY, "call", "forward", times, errors, threads)


def _plan(
    options: argparse.Namespace, names: list[str]
) -> Iterator[tuple[str, Callable[[], Iterator[list[Row]]]]]:
    """Label and measurement of everything that the options ask for."""
    rounds, threads = options.rounds, options.threads
    quick = options.quick
    for case in CASES:
        if not quick or case.name in QUICK:
            yield case.label, partial(measure, case, names, rounds, threads)
    for case in FUSED[-1:] if quick else FUSED:
        yield f"{case.label} fused", partial(measure_fused, case, rounds, threads)
    for case in CASES:
        if case.shape[1] == 3 and not quick and threads > 1:
            yield f"{case.label} threads", partial(measure_threads, case, rounds, threads)
    yield f"{TINY.label} call", partial(measure_call, rounds, threads)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.bench", description="Verify, then time, batch normalization."
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few small cases and few rounds; writes nothing"
    )
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="cases whose label contains this; writes nothing"
    )
    parser.add_argument(
        "--rivals", metavar="LIST", help=f"comma-separated, of {', '.join(rivals.RIVALS)}; writes nothing"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each race (15; 5 when quick)")
    parser.add_argument(
        "--threads", type=int, metavar="N", default=2, help="threads, and cores that are used (2)"
    )
    parser.add_argument("--no-write", action="store_true", help="only print")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (5 if options.quick else 15)
    options.threads = min(options.threads, os.cpu_count() or 1)
    wanted = (
        list(rivals.RIVALS)
        if options.rivals is None
        else [name for name in options.rivals.split(",") if name]
    )
    for name in wanted:
        if name not in rivals.RIVALS:
            parser.error(f"--rivals has {name!r}, expected some of {', '.join(rivals.RIVALS)}.")
    options.wanted = wanted
    options.writes = not (options.quick or options.only or options.rivals is not None or options.no_write)
    return options


def _prepare(threads: int, arguments: list[str]) -> None:
    """Starts the process again with recycled memory and the number of threads, which libraries read once."""
    wanted = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    wanted |= QUIET | {"JAX_PLATFORMS": "cpu"}
    if platform.libc_ver()[0] == "glibc":
        wanted |= RECYCLE
    if hasattr(os, "sched_setaffinity"):  # JAX takes every core it may run on
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-m", "benchmarks.bench", *arguments]
        os.execve(sys.executable, command, os.environ | wanted)


def main(arguments: list[str] | None = None) -> None:
    """Runs, prints, and writes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    _prepare(options.threads, arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    names = [name for name in options.wanted if rivals.installed(name)]
    for name in options.wanted:
        if name not in names:
            console.print(f"{name}: not installed, skipped")
    described = machine(options.threads)
    console.print("\n".join(f"{key:>16}  {value}" for key, value in described.items()), highlight=False)
    plan = [(label, task) for label, task in _plan(options, names) if options.only in label]
    rows: list[Row] = []
    with console.status("") as status:
        for place, (label, task) in enumerate(plan, 1):
            status.update(f"{place} of {len(plan)}: {label}")
            for found in task():
                print_race(console, found)
                rows += found
    print_verdicts(console, verdicts(index(rows)))
    if options.writes:
        write_all(described, rows, console)


def write_all(described: dict[str, str], rows: list[Row], console: Console) -> None:
    """The results file, the same in Markdown, and the README's table."""
    path = RESULTS_FOLDER / f"{slug(described)}.csv"
    write(path, described, rows)
    _, rows = read(path, Row)  # with the digits that the file keeps
    path.with_suffix(".md").write_text(document(described, rows))
    filled = fill(ROOT / "README.md", "bench", readme_table(described, rows))
    console.print(f"wrote {path.name} and .md" + (", filled README.md" if filled else ""))


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
