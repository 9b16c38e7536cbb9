"""The tables and figures of the README, docs/speed.md and docs/exactness.md are those of the results files."""

import re
from pathlib import Path

import pytest

pytest.importorskip("rich")

from benchmarks import bench, exactness, report, torch_bench
from benchmarks.harness import command
from benchmarks.harness.rows import RESULTS_FOLDER, read

ROOT = Path(__file__).parent.parent
SMALLEST = {"(64, 16, 4, 4) NCHW", "(64, 16, 4, 4) NHWC", "(32, 64) NC"}


@pytest.mark.parametrize("benchmark", [bench.BENCHMARK, torch_bench.BENCHMARK], ids=lambda b: b.module)
def test_the_page_holds_the_tables_of_one_machine(benchmark: command.Benchmark) -> None:
    page = (ROOT / benchmark.page).read_text("utf-8")
    files = [path for path in RESULTS_FOLDER.glob("*.csv") if report.benchmark_of(path) is benchmark]
    (found,) = {text for path in files for text in benchmark.tables(*read(path)).values() if text in page}
    assert found


def measured_of(page: str) -> list[exactness.Measured]:
    """What the table of docs/exactness.md shows, as `exactness.measure` gives it."""
    head, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line.startswith("|")
    )
    found: list[exactness.Measured] = []
    for layout, offset, *cells in lines:
        rows: dict[str, dict[str, float]] = {}
        for name, cell in zip(head[2:], cells, strict=True):
            what, who = name.split(", ")
            rows.setdefault(who, {})[what] = float(cell)
        found += [(layout, float(offset), who, row) for who, row in rows.items()]
    return found


def test_the_table_of_the_readme_is_a_part_of_the_table_of_exactness() -> None:
    readme, page = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/exactness.md"))
    assert f"<!-- exactness in short:start -->\n{exactness.in_short(measured_of(page))}\n" in readme


def test_the_speeds_that_the_readme_names() -> None:
    """PyTorch's times in ours: both passes on arrays; the smallest layers without activation; the steps."""
    readme, page = ((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/speed.md"))
    found = re.search(
        r"takes (\S+) to (\S+) times .*?, (\S+) to (\S+) times .*?, and (\S+) to (\S+) times", readme, re.S
    )
    assert found is not None
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if line[:3] == "| ("
    ]
    arrays = [float(row[4].rstrip("x")) for row in cells if len(row) == 8]
    small = [
        float(x.rstrip("x"))
        for row in cells
        if row[0] in SMALLEST and len(row) == 5
        for x in row[2].split(" / ")
    ]
    steps = [float(gain) for gain in re.findall(r"ms \| \d+ ms \| (\S+)x ", page)]
    assert (len(arrays), len(small), len(steps)) == (7, 6, 6)
    named = [
        f"{f(of):.{digits}f}" for of, digits in ((arrays, 1), (small, 1), (steps, 2)) for f in (min, max)
    ]
    assert named == list(found.groups())
