"""`python -m benchmarks.checker`: the checker on right implementations and on planted mistakes.

python -m benchmarks.checker                 prints a table and what was missed
python -m benchmarks.checker --only loops    only planted mistakes with this in their name, as loops:no_xhat has
python -m benchmarks.checker --write         writes docs/checker-results.md too
"""

import argparse
import sys
import warnings

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.harness.machine import machine
from benchmarks.harness.rows import ROOT

sys.path[:0] = [str(ROOT / "tests")]

from lens.checker.corpus.wrong.planted import PLANTED  # noqa: E402
from lens.checker.test_right import names  # noqa: E402

from benchmarks.checker import measure, page  # noqa: E402

PAGE = ROOT / "docs" / "checker-results.md"


def main(arguments: list[str] | None = None) -> None:
    """Runs, prints, and writes the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.checker", description=__doc__)
    parser.add_argument(
        "--only", default="", help="planted mistakes whose name has this part; writes nothing"
    )
    parser.add_argument("--write", action="store_true", help="write docs/checker-results.md")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    console = Console(width=None if sys.stdout.isatty() else 140)
    chosen = [p for p in PLANTED if options.only in f"{p.program}:{p.key}"]
    wrongs = list(track(measure.wrong(chosen), "planted mistakes", len(chosen), console=console))
    found = [] if options.only else names()
    rights = list(track(measure.right(found), "right implementations", len(found), console=console))
    for row in wrongs:
        missed = {"refused": row.refused, "named": row.named, "line": row.line, "formula": row.formula}
        if any(good is False for good in missed.values()):
            text = ", ".join(name for name, good in missed.items() if good is False)
            console.print(f"{row.planted.program}:{row.planted.key}: not {text}", highlight=False)
    for row in rights:
        if not row.passed:
            console.print(f"FALSE ALARM {row.name}: {row.headline}", highlight=False)
    table = Table("", "", "goal")
    for name, (a, b) in page.scores(rights, wrongs).items():
        table.add_row(name, f"{a} of {b}" + (f" ({100 * a / b:.0f} %)" if b else ""), f"{page.GOALS[name]} %")
    console.print(table)
    if options.write and not options.only:
        PAGE.write_text(page.page(machine(1), rights, wrongs), encoding="utf-8")
        console.print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
