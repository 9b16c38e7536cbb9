"""`python -m benchmarks.sync_bench`: one batch on 1, 2 and 4 processes; recalibration; docs/scaling.md's model.

A run without --quick replaces benchmarks/results/<machine>-sync.csv and the tables in docs/scaling.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import numpy as np
from rich.console import Console

from benchmarks.results import RESULTS_FOLDER, ROOT, fill, machine, read, slug, write
from benchmarks.sync_ranks import SyncRow

__all__ = ["fit", "main", "predicted"]

WORLDS = (1, 2, 4)
FUTURE, GROUP = (8, 256, 4096), 8
DEPTH, CHANNELS, WIDEST = (
    53,
    501,
    2048,
)  # ResNet-50: batch norms, their mean number of channels, their largest
LIMIT = 600  # seconds for a world


def world(ranks: int, rounds: int) -> list[SyncRow]:
    """What rank 0 of so many measured."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.csv")
        subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m",
             "benchmarks.sync_ranks", str(rounds)],
            check=True, timeout=LIMIT, cwd=ROOT,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "XHAT_ROWS": str(rows)},
        )  # fmt: skip
        return read(rows, SyncRow)[1]


def recalibration(rounds: int) -> list[SyncRow]:
    """A pass of recalibrate beside a plain evaluation pass: ResNet-20, and batch norms with little between."""
    import torch
    from torch import nn

    import xhat.torch as xt
    from benchmarks.torch_nets import build

    convolutions = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
    shallow = nn.Sequential(*[m for c in convolutions for m in (c, xt.BatchNorm2d(32, activation="relu"))])
    nets = {
        "ResNet-20": (xt.convert(build("ResNet-20"))[0], (64, 3, 32, 32)),
        "2 layers": (shallow, (64, 3, 32, 32)),
    }
    rows = []
    for name, (net, shape) in nets.items():
        data = [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(4)]
        net.eval()

        def evaluate(net: nn.Module = net, data: list[torch.Tensor] = data) -> None:
            with torch.no_grad():
                for x in data:
                    net(x)

        def recalibrate(net: nn.Module = net, data: list[torch.Tensor] = data) -> None:
            xt.recalibrate(net, data, progress=False)

        times: dict[str, list[float]] = {"evaluate": [], "recalibrate": []}
        for k in range(rounds + 1):
            for contestant, run in (("evaluate", evaluate), ("recalibrate", recalibrate)):
                start = perf_counter()
                run()
                if k:
                    times[contestant].append((perf_counter() - start) * 1e6)
        for contestant, t in times.items():
            cuts = quantiles(t, n=5)
            rows.append(SyncRow(1, "recalibrate", name, contestant, 0, 0, median(t), cuts[0], cuts[3]))
    return rows


# --------------------------------------------------------------------------------------------------- the model


def fit(rows: list[SyncRow], contestant: str) -> tuple[float, float, float]:
    """Microseconds a step of a ring (latency), and a kilobyte that passes it; and the largest misfit, as a factor.

        all-gather of n bytes a rank    t = (P - 1) (latency + n kilobyte)
        all-reduce                      t = 2 (P - 1) (latency + n / P kilobyte)

    by least squares of the logarithms' first order: every time weighs the same, whatever its size.
    """
    measured = [r for r in rows if r.what == "collective" and r.contestant == contestant]
    steps = [_steps(contestant, r.ranks, r.nbytes) for r in measured]
    t = np.array([r.p20 for r in measured])
    a = np.array(steps) / t[:, None]
    (latency, kilobyte), *_ = np.linalg.lstsq(a, np.ones(len(t)), rcond=None)
    misfit = np.abs(np.log(np.clip(a @ (latency, kilobyte), 1e-3, None))).max()
    return float(latency), float(kilobyte), float(np.exp(misfit))


def _steps(contestant: str, ranks: int, nbytes: float) -> tuple[float, float]:
    """How often the latency and a kilobyte count."""
    if contestant == "all-reduce":
        return 2 * (ranks - 1), 2 * (ranks - 1) / ranks * nbytes / 1e3
    return ranks - 1, (ranks - 1) * nbytes / 1e3


def predicted(
    latency: float, kilobyte: float, contestant: str, ranks: int, channels: int, depth: int
) -> float:
    """Microseconds of the exchanges of a step: forward and backward of so many layers."""
    header = 0 if contestant == "all-reduce" else 128
    return depth * sum(
        np.dot(_steps(contestant, ranks, header + 8 * n), (latency, kilobyte))
        for n in (3 + 2 * channels, 2 * channels)
    )


# ------------------------------------------------------------------------------------------------------- tables


def tables(rows: list[SyncRow]) -> dict[str, str]:
    """The tables of docs/scaling.md by their markers."""
    made = {"layers": _layers, "collectives": _collectives, "model": _model, "recalibrate": _recalibrate}
    return {f"sync-{name}": table(rows) for name, table in made.items()}


def _find(rows: list[SyncRow], *key: object) -> SyncRow:
    return next(r for r in rows if (r.ranks, r.what, r.case, r.contestant) == key)


def _layers(rows: list[SyncRow]) -> str:
    lines = ["| each rank's part | ranks | local | synchronized | more | collectives | bytes sent |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for many in (r for r in rows if r.what in ("layer", "stack") and r.contestant == "synchronized"):
        local = _find(rows, many.ranks, many.what, many.case, "local")
        figures = f"{local.p20:.0f} us | {many.p20:.0f} us | {many.p20 - local.p20:+.0f} us"
        lines.append(f"| {many.case} | {many.ranks} | {figures} | {many.collectives} | {many.nbytes} |")
    return "\n".join(lines)


def _collectives(rows: list[SyncRow]) -> str:
    lines = [
        "| a rank's numbers | ranks | exchange | all-gather | all-reduce |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for r in (r for r in rows if r.what == "collective" and r.contestant == "exchange"):
        others = (_find(rows, r.ranks, r.what, r.case, name).p20 for name in ("all-gather", "all-reduce"))
        lines.append(
            f"| {r.case} | {r.ranks} | {r.p20:.0f} us | {' | '.join(f'{t:.0f} us' for t in others)} |"
        )
    return "\n".join(lines)


def _model(rows: list[SyncRow]) -> str:
    ours, other = fit(rows, "exchange"), fit(rows, "all-reduce")
    (latency, kilobyte, misfit), (latency_, kilobyte_, misfit_) = ours, other
    lines = [f"Fitted: {latency:.0f} us a step and {kilobyte:.2f} us a kB for the exchange (all points within a factor "
             f"of {misfit:.2f}), {latency_:.0f} us and {kilobyte_:.2f} us for gloo's all-reduce ({misfit_:.2f}).",
             "",
             f"| ranks | one group | of it latency | sub-groups of {GROUP} | by all-reduce instead | "
             "gathered for the widest layer |",
             "| ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for ranks in FUTURE:
        whole = predicted(latency, kilobyte, "exchange", ranks, CHANNELS, DEPTH)
        waiting = predicted(latency, 0, "exchange", ranks, CHANNELS, DEPTH)
        parts = predicted(latency, kilobyte, "exchange", min(ranks, GROUP), CHANNELS, DEPTH)
        reduced = predicted(latency_, kilobyte_, "all-reduce", ranks, CHANNELS, DEPTH)
        times = " | ".join(f"{t / 1e6:.3g} s" for t in (whole, waiting, parts, reduced))
        lines.append(f"| {ranks} | {times} | {ranks * (128 + 8 * (3 + 2 * WIDEST)) / 1e6:.3g} MB |")
    return "\n".join(lines)


def _recalibrate(rows: list[SyncRow]) -> str:
    lines = ["| network | evaluation pass | recalibrate | ratio |", "| --- | ---: | ---: | ---: |"]
    for r in (r for r in rows if r.contestant == "recalibrate"):
        plain = _find(rows, 1, "recalibrate", r.case, "evaluate")
        figures = f"{plain.median / 1e3:.1f} ms | {r.median / 1e3:.1f} ms | {r.median / plain.median:.2f}"
        lines.append(f"| {r.case} | {figures} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints, and writes."""
    parser = argparse.ArgumentParser(prog="benchmarks.sync_bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="two ranks at most and few rounds; writes nothing"
    )
    quick = parser.parse_args(arguments).quick
    rounds = 15 if quick else 60
    rows = [row for ranks in (WORLDS[:2] if quick else WORLDS) for row in world(ranks, rounds)]
    rows += recalibration(3 if quick else 12)
    console = Console()
    for name, table in tables(rows).items():
        console.print(f"\n{name}\n{table}", markup=False, highlight=False)
    for contestant in ("exchange", "all-gather", "all-reduce"):
        latency, kilobyte, misfit = fit(rows, contestant)
        console.print(
            f"{contestant}: {latency:.1f} us a step, {kilobyte:.3f} us a kB, within a factor of {misfit:.2f}"
        )
    if not quick:
        described = machine(1)
        write(RESULTS_FOLDER / f"{slug(described)}-sync.csv", described, rows)
        for marker, text in tables(rows).items():
            fill(ROOT / "docs" / "scaling.md", marker, text)


if __name__ == "__main__":
    main()
