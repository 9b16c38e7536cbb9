"""The page of results, docs/fold-results.md. Nothing is measured here."""

import re
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

__all__ = ["write"]

PAGE = Path(__file__).parent.parent.parent / "docs" / "fold-results.md"
HEAD = """# Fold: published architectures

Written by `python -m benchmarks.fold --write` from what `python -m benchmarks.fold` has measured: `xt.fold` on
architectures of timm, torchvision and segmentation_models_pytorch, in an order that is random and always the same, with
random parameters and, in each batch norm, a batch's statistics moved at random. One thread of a shared machine,
float32. An architecture that is not listed was not reached, has no batch norm, or is larger than the limit.

"""


def write(rows: list[dict[str, Any]]) -> None:
    """Writes the page."""
    latest = {(row["package"], row["name"]): row for row in rows}
    measured = [row for row in latest.values() if "folded" in row]
    measured.sort(key=lambda row: (row["package"], row["name"]))
    PAGE.write_text(
        HEAD + "\n".join((*_summary(latest, measured), *_reasons(measured), *_table(measured))) + "\n"
    )


def _summary(latest: dict[Any, Any], measured: list[dict[str, Any]]) -> list[str]:
    norms, folded = (sum(row[key] for row in measured) for key in ("norms", "folded"))
    whole = sum(row["norms"] == row["folded"] for row in measured)
    problems = {key: row["problem"] for key, row in latest.items() if "problem" in row}
    undone = sum("undone" in why for row in measured for _, why in row["left"])
    found = [
        "| | |",
        "|---|---|",
        f"| architectures measured | {len(measured)} |",
        f"| of these, no batch norm is left | {whole} |",
        f"| batch norms, and folded of them | {norms}, {folded} |",
        f"| folds that did not hold and were undone | {undone} |",
        f"| largest error of a layer, relative to its largest value | {max(r['error'] for r in measured):.1e} |",
        f"| the same, unfolded | {max(r['unfolded'] for r in measured):.1e} |",
        f"| time of evaluation, folded over unfolded: median | {median(r['ratio'] for r in measured):.2f} |",
        f"| architectures without batch norms | {sum(r.get('norms') == 0 for r in latest.values())} |",
        f"| larger than the limit | {sum('folded' not in r and r.get('norms', 0) > 0 for r in latest.values())} |",
        f"| not built, not run or not done in time here | {len(problems)} |",
        "",
    ]
    if problems:
        found += ["Not built, not run or not done in time:", ""]
        found += [f"- {name}: {_plain(problem)}" for (_, name), problem in sorted(problems.items())] + [""]
    return found


def _plain(problem: str) -> str:
    return re.sub(r"\s+", " ", problem).replace("|", "/")[:160]


def _reasons(measured: list[dict[str, Any]]) -> list[str]:
    layers: Counter[str] = Counter()
    names: dict[str, set[str]] = {}
    for row in measured:
        for _, why in row["left"]:
            kind = re.sub(r"'[^']*'", "…", why)[:200].replace("|", "/")
            layers[kind] += 1
            names.setdefault(kind, set()).add(row["name"])
    found = ["## Why batch norms are left", "", "| batch norms | architectures | reason |", "|---|---|---|"]
    found += [f"| {count} | {len(names[kind])} | {kind} |" for kind, count in layers.most_common()]
    return [*found, ""]


def _table(measured: list[dict[str, Any]]) -> list[str]:
    found = [
        "## Every architecture",
        "",
        "Errors are those of the worst layer, on the same inputs, relative to the layer's largest value. The bound is",
        "that of the rounding of the folded weights alone. Time is that of an evaluation, folded over unfolded: least",
        "times of runs that alternate.",
        "",
        "| architecture | batch norms | folded | error | unfolded | bound | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in measured:
        errors = " | ".join(f"{row[key]:.1e}" for key in ("error", "unfolded", "bound"))
        name = f"{row['package']} {row['name']}"
        found.append(f"| {name} | {row['norms']} | {row['folded']} | {errors} | {row['ratio']:.2f} |")
    return found
