"""Tables of xhat.torch's measurements: on the terminal, in Markdown, and for the README. Nothing is measured here."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.report import described_as, duration, markdown, targets_table
from benchmarks.torch_cases import MEMORIES, VARIANTS, TorchRow
from benchmarks.torch_targets import Race, races, verdicts

__all__ = ["document", "print_race", "readme_tables"]

HEADLINES = ("32x64x112x112", "32x64x56x56", "128x16x32x32", "32x512x7x7", "64x16x4x4", "32x64")
ABOUT = (
    "Times of torch over those of xhat.torch, each pair in one process, in turns, memory as it comes from glibc / "
    "kept by `xt.reuse_memory()`, for both alike: more than 1 is faster than torch. Where glibc gives fresh memory, "
    "large results of xhat come in huge pages, and the kernels are a part of the gain only. "
    "Forward and backward through "
    "autograd, float32, running statistics updated; torch adds and applies ReLU in place."
)
ABOUT_STEPS = (
    "Forward, cross-entropy, backward and SGD; the second network is `xt.convert` of the first. The share of batch "
    "norm is what a step takes beyond the same network with every batch norm taken out (activations stay). Gains are "
    "of medians, in brackets what the 20th and 80th percentiles of both would give; – is a share that is lost in that "
    "scatter. Peak: resident memory that the steps add to a process of their own."
)


def print_race(console: Console, rows: Sequence[TorchRow]) -> None:
    """One race: time or memory, spread, torch over ours, error."""
    (race,) = races(rows)
    table = Table(title=f"{race.label}, {race.variant}, {race.what}", title_justify="left")
    for name in ("", "median", "p20", "p80", "over ours", "error"):
        table.add_column(name, justify="left" if not name else "right")
    for name, row in race.rows.items():
        times = (figure(race, value) for value in (row.median, row.p20, row.p80))
        ours = race.rows.get("xhat")
        over = f"{row.median / ours.median:.2f}x" if ours and ours.median else ""
        table.add_row(name, *times, over, f"{row.error:.0e}", style="bold" if name == "xhat" else "")
    console.print(table)


def figure(race: Race, value: float) -> str:
    """Time or megabytes, as the race has it."""
    return duration(value) if race.what in ("both", "step") else f"{value:.4g} MB"


def _gain(race: Race | None) -> str:
    """How many times as fast as torch, or how many times as small."""
    return "" if race is None else f"{1 / race.over_torch:.2f}x"


def _find(found: Sequence[Race], **fields: str) -> Race | None:
    return next((race for race in found if all(getattr(race, k) == v for k, v in fields.items())), None)


def _pair(found: Sequence[Race], **fields: str) -> str:
    """The gain with memory from stock / reused."""
    gains = [_gain(_find(found, memory=memory, **fields)) for memory in MEMORIES]
    return " / ".join(gains) if any(gains) else ""


def _layers(found: Sequence[Race], only: Sequence[str] = ()) -> str:
    keys = dict.fromkeys((r.case, r.layout, r.dtype) for r in found if r.what == "both")
    lines = []
    for case, layout, dtype in keys:
        if only and (case not in only or dtype != "float32"):
            continue
        key = {"case": case, "layout": layout, "dtype": dtype, "what": "both"}
        ours = _find(found, **key, variant="bn", memory=MEMORIES[-1])
        cells = [_pair(found, **key, variant=variant.name) for variant in VARIANTS]
        name = f"({case.replace('x', ', ')}) {layout}" + ("" if dtype == "float32" else f" {dtype}")
        lines.append([name, duration(ours.rows["xhat"].median) if ours else "", *cells])
    return markdown(["torch / xhat, stock / reused", "xhat", *(v.name for v in VARIANTS)], lines, 1)


def _share(step: TorchRow, bound: TorchRow) -> str:
    """What a step takes beyond the bound, where that is more than their scatter."""
    return f"{1 - bound.median / step.median:.0%}" if bound.p80 < step.p20 else "–"


def _steps(found: Sequence[Race]) -> str:
    lines = []
    for race in found:
        if race.what != "step":
            continue
        torch, ours, bound = (race.rows[name] for name in ("torch", "xhat", "identity"))
        key = {"case": race.case, "layout": race.layout, "variant": race.variant, "memory": race.memory}
        peak = _find(found, **key, what="peak")
        peaks = [f"{peak.rows[name].median:.0f} MB" for name in ("torch", "xhat")] if peak else ["", ""]
        times = duration(torch.median), duration(ours.median)
        gain = f"{_gain(race)} ({torch.p20 / ours.p80:.2f}–{torch.p80 / ours.p20:.2f})"
        shares = f"{_share(torch, bound)} → {_share(ours, bound)}"
        name = f"{race.variant}, ({race.case.replace('x', ', ')}) {race.layout}"
        lines.append([name, race.memory, *times, gain, shares, *peaks])
    head = ["a training step", "memory", "torch", "xhat", "gain", "batch norm's share", "peak, torch", "xhat"]
    return markdown(head, lines, 2)


def _saved(found: Sequence[Race]) -> str:
    lines = [
        [f"{race.case} {race.layout} {race.variant}", name, f"{row.median * 1e6 / race.nbytes:.2f}"]
        for race in found
        if race.what == "saved beyond x" and race.memory == MEMORIES[0]
        for name, row in race.rows.items()
    ]
    return markdown(["kept for the backward", "", "sizes of x, beyond x"], lines, 2)


def readme_tables(machine: dict[str, str], rows: Sequence[TorchRow]) -> str:
    """The README's tables: a few layers, and the training steps."""
    found = races(rows)
    parts = [_layers(found, HEADLINES), ABOUT, _steps(found), ABOUT_STEPS, described_as(machine)]
    return "\n\n".join(parts) + "\n"


def _times(found: Sequence[Race]) -> str:
    lines = [
        [f"{race.label}, {race.variant}", name, *(duration(t) for t in (row.median, row.p20, row.p80))]
        for race in found
        if race.what in ("both", "step")
        for name, row in race.rows.items()
    ]
    return markdown(["case", "", "median", "p20", "p80"], lines, 2)


def document(machine: dict[str, str], rows: Sequence[TorchRow]) -> str:
    """Everything that was measured, and every target, in Markdown."""
    found, judged = races(rows), verdicts(rows)
    reached = sum(verdict.reached for verdict in judged)
    parts = [
        "# Measured speed and memory of xhat.torch",
        described_as(machine),
        "## Layers",
        ABOUT,
        _layers(found),
        "## Training steps",
        ABOUT_STEPS,
        _steps(found),
        "## What autograd keeps",
        _saved(found),
        f"## Targets: {reached} of {len(judged)} reached",
        targets_table(judged),
        "## Times",
        _times(found),
    ]
    return "\n\n".join(parts) + "\n"
