"""`python -m benchmarks.bench`: batch norm on NumPy arrays, beside PyTorch, JAX, Numba and the speed of memory.

A run of everything replaces benchmarks/results/<machine>.csv and the table in docs/speed.md. Freed memory is recycled,
which is to the rivals' advantage: xhat's results are preallocated.
"""

import argparse
from collections.abc import Iterator
from functools import partial

from benchmarks.harness.cases import CASES, TINY
from benchmarks.harness.command import RECYCLED, Benchmark, Options, Run, Task, main
from benchmarks.numpy import rivals
from benchmarks.numpy.measure import measure, measure_call, measure_fused, measure_threads
from benchmarks.numpy.tables import details, tables
from benchmarks.numpy.targets import targets

__all__ = ["BENCHMARK"]

QUICK = {"32x512x7x7", "64x64"}
# Where activations and the residual are compared with none: a layer that memory bounds, one in the caches.
FUSED = [
    case for case in CASES if case.shape in {(32, 64, 56, 56), (128, 16, 32, 32)} and case.dtype == "float32"
]


def _runs(options: Options) -> list[Run]:
    threads = {"NUMBA_NUM_THREADS": str(options.threads), "JAX_PLATFORMS": "cpu"}
    return [Run("recycled", RECYCLED | threads)]


def _rivals(value: str) -> list[str]:
    names = [name for name in value.split(",") if name]
    for name in names:
        if name not in rivals.RIVALS:
            raise argparse.ArgumentTypeError(f"has {name!r}, expected some of {', '.join(rivals.RIVALS)}.")
    return names


def _add_options(parser: argparse.ArgumentParser) -> None:
    known = ", ".join(rivals.RIVALS)
    parser.add_argument(
        "--rivals", metavar="LIST", type=_rivals, help=f"comma-separated, of {known}; writes nothing"
    )


def _tasks(run: str, options: Options) -> Iterator[tuple[str, Task]]:
    wanted = list(rivals.RIVALS) if options.rivals is None else options.rivals
    names = [name for name in wanted if rivals.installed(name)]
    for name in set(wanted) - set(names):
        print(f"{name}: not installed, skipped")
    rounds, threads, quick = options.rounds, options.threads, options.quick
    for case in CASES:
        if not quick or case.name in QUICK:
            yield case.label, partial(measure, case, names, rounds, threads)
    for case in FUSED[-1:] if quick else FUSED:
        yield f"{case.label} fused", partial(measure_fused, case, rounds, threads)
    for case in CASES:
        if case.shape[1] == 3 and not quick and threads > 1:
            yield f"{case.label} threads", partial(measure_threads, case, rounds, threads)
    yield f"{TINY.label} call", partial(measure_call, rounds, threads)


BENCHMARK = Benchmark(
    module="benchmarks.bench",
    title="Measured speed",
    suffix="",
    runs=_runs,
    tasks=_tasks,
    targets=targets,
    tables=tables,
    details=details,
    add_options=_add_options,
)

if __name__ == "__main__":
    main(BENCHMARK)
