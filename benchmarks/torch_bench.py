"""`python -m benchmarks.torch_bench`: xhat.torch beside torch, verified, timed, judged, and written.

Everything is measured twice, each time in a process of its own: with memory as glibc gives it, and with memory that
`xt.reuse_memory()` keeps. In both, torch and xhat take turns in the same process, so that what recycling gains is
never put down to the kernels. A run without --quick, --only or --no-write replaces benchmarks/results/<machine>-torch
.csv and .md and the tables in README.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.contest import QUIET
from benchmarks.report import print_verdicts
from benchmarks.results import RESULTS_FOLDER, ROOT, fill, machine, read, slug, write
from benchmarks.torch_cases import LAYERS, MEMORIES, NETS, SAVED, VARIANTS, Layer, TorchRow
from benchmarks.torch_report import document, print_race, readme_tables
from benchmarks.torch_targets import verdicts

__all__ = ["main", "write_all"]

Task = Callable[[], Iterator[TorchRow]]
LARGE = 50e6  # bytes of x from which half of the rounds have to do


def _plan(memory: str, rounds: int, only: str, quick: bool) -> Iterator[tuple[str, Task]]:
    """Label and measurement of everything that the options ask for, in this process."""
    from benchmarks import torch_layers, torch_steps

    tasks: list[tuple[str, Task]] = []
    for layer in LAYERS:
        turns = rounds if layer.case.nbytes < LARGE else (rounds + 1) // 2
        tasks.append((layer.label, partial(torch_layers.measure, layer, memory, turns)))
    for variant in VARIANTS:
        layer = Layer(SAVED, variant)
        tasks.append((f"{layer.label} saved", partial(torch_layers.saved, layer, memory)))
    for net in NETS:
        tasks.append((f"{net.label} step", partial(torch_steps.measure, net, memory, (rounds + 1) // 2)))
        tasks.append((f"{net.label} peak", partial(torch_steps.peaks, net, memory)))
    small = {f"{layer.label}": layer.case.nbytes < 1e6 for layer in LAYERS}
    for label, task in tasks:
        if only in label and (not quick or small.get(label)):
            yield label, task


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.torch_bench", description="Verify, then time, xhat.torch beside torch."
    )
    parser.add_argument("--quick", action="store_true", help="small layers and few rounds; writes nothing")
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="what has this in its label; writes nothing"
    )
    parser.add_argument("--memory", choices=MEMORIES, help="only with memory of this kind; writes nothing")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of each race (15; 5 when quick)")
    parser.add_argument("--threads", type=int, metavar="N", default=2, help="threads, and cores used (2)")
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # the file of a process that measures
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (5 if options.quick else 15)
    options.threads = min(options.threads, os.cpu_count() or 1)
    options.writes = not (options.quick or options.only or options.memory or options.no_write)
    return options


def _measure(options: argparse.Namespace, console: Console) -> None:
    """In a process of its own, for one kind of memory: measures, prints, and leaves the rows in a file."""
    if options.memory == "reused":
        from xhat.torch.memory import reuse_memory

        console.print(str(reuse_memory()), highlight=False)
    rows: list[TorchRow] = []
    for _, task in _plan(options.memory, options.rounds, options.only, options.quick):
        found = list(task())
        if found:
            print_race(console, found)
        rows += found
    if rows:
        write(options.rows, machine(options.threads), rows)


def _in_processes(options: argparse.Namespace, arguments: list[str]) -> Iterator[TorchRow]:
    """The rows of a process for each kind of memory; the number of threads is what libraries read once."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    environment = os.environ | QUIET | {"OMP_NUM_THREADS": str(options.threads)}
    with tempfile.TemporaryDirectory() as folder:
        for memory in [options.memory] if options.memory else MEMORIES:
            path = Path(folder) / f"{memory}.csv"
            command = [sys.executable, "-m", "benchmarks.torch_bench", *arguments]
            command += ["--memory", memory, "--rows", str(path)]
            subprocess.run(command, cwd=ROOT, env=environment, check=True)
            if path.exists():
                yield from read(path, TorchRow)[1]


def main(arguments: list[str] | None = None) -> None:
    """Runs, prints, and writes."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _options(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.rows:
        _measure(options, console)
        return
    described = machine(options.threads)
    console.print("\n".join(f"{key:>16}  {value}" for key, value in described.items()), highlight=False)
    rows = list(_in_processes(options, arguments))
    print_verdicts(console, verdicts(rows))
    if options.writes:
        write_all(described, rows, console)


def write_all(described: dict[str, str], rows: list[TorchRow], console: Console) -> None:
    """The results file, the same in Markdown, and the README's tables."""
    path = RESULTS_FOLDER / f"{slug(described)}-torch.csv"
    write(path, described, rows)
    _, rows = read(path, TorchRow)  # with the digits that the file keeps
    path.with_suffix(".md").write_text(document(described, rows))
    filled = fill(ROOT / "README.md", "torch", readme_tables(described, rows))
    console.print(f"wrote {path.name} and .md" + (", filled README.md" if filled else ""))


if __name__ == "__main__":
    main()
