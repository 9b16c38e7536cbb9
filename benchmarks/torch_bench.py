"""`python -m benchmarks.torch_bench`: xhat.torch beside torch, verified, then timed.

Everything is measured twice: with memory as glibc gives it (--part stock), and with memory that the process keeps when
it is freed (--part reused). torch and xhat take turns in the same process, so both have the same memory. A run of
everything replaces benchmarks/results/<machine>-torch.csv and the tables in docs/speed.md.
"""

from collections.abc import Iterator
from functools import partial

from benchmarks.harness.command import Benchmark, Options, Run, Task, main
from benchmarks.torch.cases import LAYERS, MEMORIES, NETS, SAVED, VARIANTS, Layer
from benchmarks.torch.tables import tables
from benchmarks.torch.targets import targets

__all__ = ["BENCHMARK"]

LARGE = 50e6  # bytes of x from which half of the rounds suffice


def _runs(options: Options) -> list[Run]:
    return [Run(memory, environment) for memory, environment in MEMORIES.items()]


def _tasks(memory: str, options: Options) -> Iterator[tuple[str, Task]]:
    from benchmarks.torch import layers, steps

    rounds, half = options.rounds, (options.rounds + 1) // 2
    for layer in LAYERS:
        if not options.quick or layer.case.nbytes < 1e6:
            turns = rounds if layer.case.nbytes < LARGE else half
            yield layer.label, partial(layers.measure, layer, memory, turns)
    if options.quick:
        return
    for variant in VARIANTS:
        layer = Layer(SAVED, variant)
        yield f"{layer.label} saved", partial(layers.saved, layer, memory)
    for net in NETS:
        yield f"{net.label} step", partial(steps.measure, net, memory, half)
        yield f"{net.label} peak", partial(steps.peaks, net, memory)


BENCHMARK = Benchmark(
    module="benchmarks.torch_bench",
    title="Measured speed and memory of xhat.torch",
    suffix="-torch",
    runs=_runs,
    tasks=_tasks,
    targets=targets,
    tables=tables,
)

if __name__ == "__main__":
    main(BENCHMARK)
