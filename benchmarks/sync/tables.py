"""The tables of docs/scaling.md. Nothing is measured here."""

from collections.abc import Sequence

from benchmarks.harness.report import markdown
from benchmarks.harness.rows import Race, Row, races
from benchmarks.sync.model import fit, predicted

__all__ = ["tables"]

FUTURE, GROUP = (8, 256, 4096), 8  # ranks
DEPTH, CHANNELS, WIDEST = (
    53,
    501,
    2048,
)  # ResNet-50: batch norms, their mean number of channels, their largest


def tables(machine: dict[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """The tables by their markers."""
    made = {"layers": _layers, "collectives": _collectives, "recalibrate": _recalibrate}
    found = races(rows)
    return {f"sync-{name}": table(found) for name, table in made.items()} | {"sync-model": _model(rows)}


def _layers(found: Sequence[Race]) -> str:
    head = ["each rank's part", "ranks", "local", "synchronized", "more", "collectives", "bytes sent"]
    lines = []
    for race in found:
        if race.what in ("layer", "stack"):
            local, many = race.rows["local"], race.rows["synchronized"]
            times = f"{local.p20:.0f} us", f"{many.p20:.0f} us", f"{many.p20 - local.p20:+.0f} us"
            lines.append([race.case, str(race.ranks), *times, str(many.collectives), str(many.nbytes)])
    return markdown(head, lines, 1)


def _collectives(found: Sequence[Race]) -> str:
    names = ("exchange", "all-gather", "all-reduce")
    lines = [
        [race.case, str(race.ranks), *(f"{race.rows[name].p20:.0f} us" for name in names)]
        for race in found
        if race.what == "collective"
    ]
    return markdown(["a rank's numbers", "ranks", *names], lines, 1)


def _model(rows: Sequence[Row]) -> str:
    (latency, kilobyte, misfit), (latency_, kilobyte_, misfit_) = (
        fit(rows, "exchange"),
        fit(rows, "all-reduce"),
    )
    fitted = (
        f"Fitted: {latency:.0f} us a step and {kilobyte:.2f} us a kB for the exchange (all points within a factor "
        f"of {misfit:.2f}), {latency_:.0f} us and {kilobyte_:.2f} us for gloo's all-reduce ({misfit_:.2f})."
    )
    head = ["ranks", "one group", "of it latency", f"sub-groups of {GROUP}", "by all-reduce instead"]
    lines = []
    for ranks in FUTURE:
        whole = predicted(latency, kilobyte, "exchange", ranks, CHANNELS, DEPTH)
        waiting = predicted(latency, 0, "exchange", ranks, CHANNELS, DEPTH)
        parts = predicted(latency, kilobyte, "exchange", min(ranks, GROUP), CHANNELS, DEPTH)
        reduced = predicted(latency_, kilobyte_, "all-reduce", ranks, CHANNELS, DEPTH)
        gathered = f"{ranks * (128 + 8 * (3 + 2 * WIDEST)) / 1e6:.3g} MB"
        lines.append([str(ranks), *(f"{t / 1e6:.3g} s" for t in (whole, waiting, parts, reduced)), gathered])
    return f"{fitted}\n\n{markdown([*head, 'gathered for the widest layer'], lines, 0)}"


def _recalibrate(found: Sequence[Race]) -> str:
    lines = [
        [
            race.case,
            *(f"{race.rows[name].median / 1e3:.1f} ms" for name in ("evaluate", "recalibrate")),
            f"{race.ratio('recalibrate', 'evaluate'):.2f}",
        ]
        for race in found
        if race.what == "recalibrate"
    ]
    return markdown(["network", "evaluation pass", "recalibrate", "ratio"], lines, 1)
