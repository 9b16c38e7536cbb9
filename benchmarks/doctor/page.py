"""The page docs/doctor-results.md: recall, precision, the cases, the healthy models and the cost, as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from benchmarks.doctor.measure import CaseRow, Cost, HealthyRow

__all__ = ["page", "scores"]

INTRODUCTION = (
    "`python -m benchmarks.doctor` writes this page. Each case is a small program in `tests/doctor/cases`, named "
    "by the public issue in which people had the fault; it makes the fault in a network and on data of its own. "
    "The cause of a case is named if it is the first of the harmful findings and no false cause is called "
    "harmful. A cause that harms elsewhere, such as in half precision, has to be found as a risk or a note, and "
    "nothing else may be called harmful. The first thresholds were chosen on another network, and were changed "
    "where these cases and models showed that they were wrong, and some cases were made stronger "
    "until their fault was plain: so these are not numbers for unseen models."
)


def scores(cases: Sequence[CaseRow], healthy: Sequence[HealthyRow]) -> dict[str, tuple[int, int]]:
    """Recall: the cases whose cause is named. Precision: the harmful findings that are true."""
    named = sum(not row.fault for row in cases)
    harmful = [(row, cause) for row in cases for cause in row.harmful]
    false = sum(
        f"{cause}" in row.fault.removeprefix("harmful and false: ").split(", ") for row, cause in harmful
    )
    alarms = sum(len(row.harmful) for row in healthy)
    total = len(harmful) + alarms
    quiet = sum(not row.harmful for row in healthy)
    return {
        "recall": (named, len(cases)),
        "precision": (total - false - alarms, total),
        "healthy models without a harmful finding": (quiet, len(healthy)),
    }


def page(
    machine: Mapping[str, str],
    cases: Sequence[CaseRow],
    healthy: Sequence[HealthyRow],
    passes: Mapping[str, tuple[float, int]],
    cost: Cost,
    planned: int,
) -> str:
    """The whole page; planned: how many healthy models the grid has."""
    parts = [
        "# What the doctor finds",
        INTRODUCTION,
        _table(
            ["", "", ""],
            ([name, f"{a} of {b}", _percent(a, b)] for name, (a, b) in scores(cases, healthy).items()),
        ),
        "## Cases",
        _table(
            ["case", "source", "cause", "named first", "with the remedy", "also found"],
            (_case(list(rows)) for _, rows in groupby(cases, key=lambda row: row.name)),
        ),
        "Numbers are those of the first seed. In brackets: for how many of the seeds the answer is right, if not all.",
        "## Healthy models",
        "They are trained on data that packages bring along (photographs, digits, tables), and diagnosed in evaluation "
        "and in training mode, on batches of the size that they were trained with.",
        _table(
            ["model", "batch sizes", "momenta", "seeds", "models", "harmful findings", "notes and risks"],
            (_healthy(list(rows)) for _, rows in groupby(healthy, key=lambda row: row.setting.name)),
        ),
        _measured(len(healthy), planned),
        "## Cost",
        _table(
            ["diagnosis of", "forward passes a batch", "layers swapped alone"],
            ([name, f"{count:.1f}", str(swapped)] for name, (count, swapped) in passes.items()),
        ),
        f"A step of a ResNet-20 (batches of 128, 32 x 32) takes {cost.plain * 1e3:.1f} ms, and within `xt.watch` "
        f"{cost.watched * 1e3:.1f} ms (the least of steps that alternate). The median ratio of neighbours is "
        f"{cost.ratio:.3f}.",
        "## Machine",
        _table(["", ""], ([key, value] for key, value in machine.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _measured(count: int, planned: int) -> str:
    if count >= planned:
        return f"These are all {planned} models of the grid."
    return f"These are {count} of the {planned} models of the grid: the run was stopped before its end."


def _case(rows: list[CaseRow]) -> list[str]:
    row, right = rows[0], sum(not row.fault for row in rows)
    seeds = "" if right == len(rows) else f" ({right} of {len(rows)})"
    name = f"[{row.name}](../tests/doctor/cases/{row.name}.py)"
    return [
        name,
        row.source,
        f"{row.cause}",
        row.first + seeds,
        row.proof.replace("->", "→"),
        ", ".join(row.beside),
    ]


def _healthy(rows: list[HealthyRow]) -> list[str]:
    settings = [row.setting for row in rows]
    alarms = sorted({cause for row in rows for cause in row.harmful})
    count = sum(len(row.harmful) for row in rows)
    return [
        settings[0].name,
        ", ".join(map(str, sorted({s.size for s in settings}))),
        ", ".join(map(str, sorted({s.momentum for s in settings}))),
        str(len({s.seed for s in settings})),
        str(len(rows)),
        f"{count}: {', '.join(alarms)}" if count else "0",
        ", ".join(sorted({cause for row in rows for cause in row.beside})),
    ]


def _percent(a: int, b: int) -> str:
    return f"{100 * a / b:.0f} %" if b else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
