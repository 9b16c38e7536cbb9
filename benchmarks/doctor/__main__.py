"""`python -m benchmarks.doctor`: the doctor's cases, healthy models and cost; writes docs/doctor-results.md.

    python -m benchmarks.doctor             three seeds of each case, the whole grid of healthy models (an hour)
    python -m benchmarks.doctor --quick     one seed, and the healthy models of the tests; writes nothing
    python -m benchmarks.doctor --only dassl,ganhacks             these cases; writes nothing
    python -m benchmarks.doctor --seeds 1 --healthy small         less of everything; writes the page

The healthy models that were measured are kept in build/doctor-healthy.json, so that a run that was broken off goes on.
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator

import torch
from rich.console import Console
from rich.progress import track

from benchmarks.harness.machine import machine
from benchmarks.harness.rows import ROOT

TESTS = ROOT / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "doctor")]

import judging  # noqa: E402
from healthy import LARGE, QUICK, SMALL, Series, Setting, grid, healthy, trained  # noqa: E402

from benchmarks.doctor import measure, page  # noqa: E402

PAGE = ROOT / "docs" / "doctor-results.md"
KEPT = ROOT / "build" / "doctor-healthy.json"
# A healthy model, statistics that do not fit, and one with many layers: what a diagnosis costs.
COSTED = ("allennlp_4990", "adabn_1", "composer_624")


def state() -> str:
    """A digest of the doctor and of the models: what was measured with other code is not kept."""
    files = sorted([*(ROOT / "src/xhat/torch/doctor").rglob("*.py"), *(TESTS / "doctor").glob("*.py")])
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def kept(wanted: Iterable[Series]) -> Iterator[measure.HealthyRow]:
    """The models of all series; those that an earlier run with the same code has measured are read from its file."""
    known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    known = known if known.get("state") == state() else {"state": state()}
    for series in wanted:
        if str(series) not in known:
            known[str(series)] = list(measure.healthy_models(trained(series)))
            KEPT.parent.mkdir(exist_ok=True)
            KEPT.write_text(json.dumps(known))
        for (name, seed, size, momentum), harmful, beside, *losses in known[str(series)]:
            setting = Setting(name, seed, size, momentum)
            yield measure.HealthyRow(setting, tuple(harmful), tuple(beside), *losses)


def series(kind: str, seeds: int) -> list[Series]:
    """The networks of "small" or "all"; batches of 128 of the large ones take minutes, so they have one seed."""
    large = [*grid(LARGE, (8, 32), seeds), *grid(LARGE, (128,), 1)] if kind == "all" else []
    return [*grid(SMALL, seeds=seeds), *large]


def models(kind: str, seeds: int, console: Console) -> list[measure.HealthyRow]:
    """The healthy models, each diagnosed."""
    if kind == "quick":
        found, total = measure.healthy_models((setting, healthy(setting)) for setting in QUICK), len(QUICK)
    else:
        wanted = series(kind, seeds)
        found, total = kept(wanted), 2 * len(wanted)
    rows = []
    for row in track(found, "healthy models", total, console=console):
        if row.harmful:
            console.print(f"FALSE ALARM {row.setting}: {', '.join(row.harmful)}")
        rows.append(row)
    return rows


def answers(only: str, seeds: int, console: Console) -> list[measure.CaseRow]:
    """The answers to the cases whose names have one of these parts."""
    names = [n for n in judging.CASES if not only or any(part in n for part in only.split(","))]
    rows = []
    for row in track(measure.cases(names, range(seeds)), "cases", len(names) * seeds, console=console):
        verdict = f"MISS ({row.fault})" if row.fault else "ok"
        console.print(f"{verdict} {row.name}, seed {row.seed}: {row.first} {row.proof}", highlight=False)
        rows.append(row)
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Runs, prints, and writes the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.doctor", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, few healthy models; writes nothing")
    parser.add_argument("--only", default="", help="cases whose name has one of these parts; writes nothing")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--healthy", choices=["quick", "small", "all"], default="all")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.healthy = 1, "quick"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows = answers(options.only, options.seeds, console)
    if options.only:
        return
    found = models(options.healthy, options.seeds, console)
    passes = {name: measure.passes(name) for name in COSTED}
    cost = measure.cost_of_watch(10 if options.quick else 40)
    for name, (a, b) in page.scores(rows, found).items():
        console.print(f"{name}: {a} of {b}", style="bold")
    console.print(f"xt.watch: {cost.ratio:.3f} of a plain step; passes a batch: {passes}")
    if not options.quick:
        planned = 2 * len(series("all", 3))
        PAGE.write_text(page.page(machine(1), rows, found, passes, cost, planned), encoding="utf-8")
        console.print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
