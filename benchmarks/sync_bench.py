"""`python -m benchmarks.sync_bench`: one batch on 1, 2 and 4 processes; recalibration; docs/scaling.md's model.

A run of everything replaces benchmarks/results/<machine>-sync.csv and the tables in docs/scaling.md.
"""

import sys
from collections.abc import Iterator
from functools import partial

from benchmarks.harness.command import Benchmark, Options, Run, Task, main
from benchmarks.harness.rows import Race
from benchmarks.harness.targets import Verdict
from benchmarks.sync.model import predicted
from benchmarks.sync.tables import tables

__all__ = ["BENCHMARK", "predicted"]

WORLDS = (1, 2, 4)
LIMIT = 600  # seconds for a world


def _runs(options: Options) -> list[Run]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    worlds = [
        Run(f"ranks-{ranks}", {"GLOO_SOCKET_IFNAME": "lo"}, [*torchrun, f"--nproc-per-node={ranks}"], LIMIT)
        for ranks in (WORLDS[:2] if options.quick else WORLDS)
    ]
    return [*worlds, Run("recalibrate")]


def _tasks(run: str, options: Options) -> Iterator[tuple[str, Task]]:
    from benchmarks.sync import ranks, recalibration

    if run == "recalibrate":
        yield run, partial(recalibration.measure, max(3, options.rounds // 5))
    else:
        yield run, partial(ranks.measure, options.rounds)


def _no_targets(race: Race) -> Iterator[Verdict]:
    return iter(())


BENCHMARK = Benchmark(
    module="benchmarks.sync_bench",
    title="Measured cost of synchronized batch norm",
    suffix="-sync",
    runs=_runs,
    tasks=_tasks,
    targets=_no_targets,
    tables=tables,
    page="docs/scaling.md",
    rounds=(60, 15),
    threads=1,
    bound=False,
)

if __name__ == "__main__":
    main(BENCHMARK)
