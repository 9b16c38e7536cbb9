"""`python -m benchmarks.report [FILE...]`: everything in results files (by default all of them), with every target."""

import sys
from pathlib import Path

from rich.console import Console

from benchmarks import bench, sync_bench, torch_bench
from benchmarks.harness.command import Benchmark, show
from benchmarks.harness.report import print_machine, print_verdicts
from benchmarks.harness.rows import RESULTS_FOLDER, races, read
from benchmarks.harness.targets import judged

__all__ = ["benchmark_of", "main"]


def benchmark_of(path: Path) -> Benchmark:
    """The benchmark that writes results files of this name."""
    others = (torch_bench.BENCHMARK, sync_bench.BENCHMARK)
    return next((other for other in others if path.stem.endswith(other.suffix)), bench.BENCHMARK)


def main(arguments: list[str] | None = None, console: Console | None = None) -> None:
    """Prints what the run of each file printed."""
    arguments = sys.argv[1:] if arguments is None else arguments
    console = console or Console(width=None if sys.stdout.isatty() else 120)
    for path in map(Path, arguments or sorted(RESULTS_FOLDER.glob("*.csv"))):
        machine, rows = read(path)
        benchmark = benchmark_of(path)
        console.print(f"{path.stem}: {benchmark.title}", style="bold")
        print_machine(console, machine)
        show(benchmark, rows, console)
        print_verdicts(console, judged(races(rows), benchmark.targets))


if __name__ == "__main__":
    main()
