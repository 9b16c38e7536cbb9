"""`python -m benchmarks.doctor`: the doctor's cases, healthy models and cost; writes docs/doctor-results.md.

    python -m benchmarks.doctor             three seeds of each case, the whole grid of healthy models (an hour)
    python -m benchmarks.doctor --quick     one seed, and the healthy models of the tests; writes nothing
    python -m benchmarks.doctor --only dassl,ganhacks    these cases; writes nothing

The healthy models that were measured are kept in build/doctor-healthy.json, so that a run that was broken off goes on.
"""

import argparse
import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

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


def main(arguments: list[str] | None = None) -> None:
    """Runs, prints, and writes the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.doctor", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    console = Console(width=None if sys.stdout.isatty() else 160)
    names = [
        n for n in judging.CASES if not options.only or any(part in n for part in options.only.split(","))
    ]
    rows = []
    for row in measure.cases(track(names, "cases", console=console), range(1 if options.quick else 3)):
        console.print(
            f"{'ok  ' if not row.fault else 'MISS'} {row.name}, seed {row.seed}: {row.first} {row.proof} {row.fault}"
        )
        rows.append(row)
    if options.only:
        return
    wanted = [*grid(SMALL), *grid(LARGE, (8, 32)), *grid(LARGE, (128,), seeds=1)]
    quick = measure.healthy_models((setting, healthy(setting)) for setting in QUICK)
    total = len(QUICK) if options.quick else 2 * len(wanted)
    models = list(track(quick if options.quick else kept(wanted), "healthy models", total, console=console))
    for one in models:
        if one.harmful:
            console.print(f"FALSE ALARM {one.setting}: {', '.join(one.harmful)}")
    passes = {name: measure.passes(name) for name in COSTED}
    cost = measure.cost_of_watch(10 if options.quick else 60)
    for name, (a, b) in page.scores(rows, models).items():
        console.print(f"{name}: {a} of {b}", style="bold")
    console.print(f"xt.watch: {cost.ratio:.3f} of a plain step; passes a batch: {passes}")
    if not options.quick:
        Path(PAGE).write_text(page.page(machine(1), rows, models, passes, cost), encoding="utf-8")
        console.print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
