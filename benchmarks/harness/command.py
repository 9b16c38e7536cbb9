"""The command of every benchmark: measure in child processes, print, compare with the targets, and write.

Libraries read the number of threads, and malloc its settings, when a process starts: so each kind of run has a process
of its own, which leaves its rows in a file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness.machine import machine, slug
from benchmarks.harness.report import Details, fill, print_machine, print_race, print_verdicts
from benchmarks.harness.rows import RESULTS_FOLDER, ROOT, Race, Row, races, read, write
from benchmarks.harness.targets import Targets, judged

__all__ = ["RECYCLED", "Benchmark", "Options", "Run", "Task", "main", "show", "write_all"]

Options = argparse.Namespace
Task = Callable[[], Iterator[Row]]

# For glibc: memory that is freed stays with the process, so that no later tensor pays for page faults.
RECYCLED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_TOP_PAD_": str(64 << 20)}
# NumPy's BLAS takes part in verifying only, and its idle threads would spin for 130 ms of the race.
QUIET = {"OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Run:
    """A process that measures: its environment, and a program that starts it (such as torchrun) with its arguments."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: Sequence[str] = ()
    timeout: float | None = None


def _no_details(race: Race, row: Row) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class Benchmark:
    """What is particular to one benchmark.

    runs: the processes that measure. tasks: label and measurement of all that a run does, called in its process.
    tables: the text for each marker of `page`.
    """

    module: str
    title: str
    suffix: str
    runs: Callable[[Options], Sequence[Run]]
    tasks: Callable[[str, Options], Iterator[tuple[str, Task]]]
    targets: Targets
    tables: Callable[[dict[str, str], Sequence[Row]], Mapping[str, str]]
    page: str = "docs/speed.md"
    details: Details = _no_details
    add_options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None
    rounds: tuple[int, int] = (15, 5)
    threads: int = 2
    bound: bool = True  # to as many cores as threads: JAX uses every core that it may run on


def _options(benchmark: Benchmark, arguments: list[str]) -> Options:
    rounds, few = benchmark.rounds
    parser = argparse.ArgumentParser(
        prog=benchmark.module, description=f"{benchmark.title}: verify, then time."
    )
    parser.add_argument("--quick", action="store_true", help="small cases and few rounds; writes nothing")
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="cases whose label contains this; writes nothing"
    )
    parser.add_argument("--part", metavar="NAME", help="only this part of the runs; writes nothing")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help=f"rounds of each race ({rounds}; {few} if quick)"
    )
    threads = benchmark.threads
    parser.add_argument(
        "--threads", type=int, metavar="N", default=threads, help=f"threads, and cores used ({threads})"
    )
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # the file of a process that measures
    benchmark.add_options(parser)
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (few if options.quick else rounds)
    options.threads = min(options.threads, os.cpu_count() or 1)
    known = [run.name for run in benchmark.runs(options)]
    if options.part and options.part not in known:
        parser.error(f"--part has {options.part!r}, expected one of {', '.join(known)}.")
    in_part = options.quick or options.only or options.part or getattr(options, "rivals", None) is not None
    options.writes = not (in_part or options.no_write)
    return options


def _measure(benchmark: Benchmark, options: Options) -> None:
    """Measures and prints in a process of its own, and leaves the rows in a file; of several ranks the first does."""
    console = _console(quiet=os.environ.get("RANK", "0") != "0")
    rows: list[Row] = []
    for label, task in benchmark.tasks(options.part, options):
        if options.only in label:
            found = list(task())
            show(benchmark, found, console)
            rows += found
    if rows and not console.quiet:
        write(options.rows, machine(options.threads), rows)


def _in_processes(benchmark: Benchmark, options: Options, arguments: list[str]) -> Iterator[Row]:
    """The rows of every run."""
    if benchmark.bound and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    with tempfile.TemporaryDirectory() as folder:
        for run in benchmark.runs(options):
            if options.part not in (None, run.name):
                continue
            path = Path(folder) / f"{run.name}.csv"
            launcher = run.launcher or [sys.executable]
            command = [*launcher, "-m", benchmark.module, *arguments, "--part", run.name, "--rows", str(path)]
            environment = os.environ | QUIET | {"OMP_NUM_THREADS": str(options.threads)} | run.environment
            subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=run.timeout)
            if path.exists():
                yield from read(path)[1]


def _console(quiet: bool = False) -> Console:
    return Console(width=None if sys.stdout.isatty() else 120, quiet=quiet)


def main(benchmark: Benchmark, arguments: list[str] | None = None) -> None:
    """Runs, prints, and writes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(benchmark, arguments)
    if options.rows:
        _measure(benchmark, options)
        return
    console, described = _console(), machine(options.threads)
    print_machine(console, described)
    rows = list(_in_processes(benchmark, options, arguments))
    print_verdicts(console, judged(races(rows), benchmark.targets))
    if options.writes:
        write_all(benchmark, described, rows, console)


def show(benchmark: Benchmark, rows: Sequence[Row], console: Console) -> None:
    """Prints the races that these rows make up."""
    for race in races(rows):
        print_race(console, race, benchmark.details)


def write_all(benchmark: Benchmark, described: dict[str, str], rows: list[Row], console: Console) -> None:
    """The results file, and the tables of the page."""
    path = RESULTS_FOLDER / f"{slug(described)}{benchmark.suffix}.csv"
    write(path, described, rows)
    _, rows = read(path)  # with the digits that the file keeps
    console.print(f"wrote {path.name}")
    for marker, text in benchmark.tables(described, rows).items():
        if fill(ROOT / benchmark.page, marker, text):
            console.print(f"filled {benchmark.page}, {marker}")
