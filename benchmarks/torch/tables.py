"""The tables of docs/speed.md: xhat.torch beside torch. Nothing is measured here."""

from collections.abc import Sequence

from benchmarks.harness.report import described_as, duration, markdown, shape
from benchmarks.harness.rows import Race, Row, find, races
from benchmarks.torch.cases import MEMORIES, VARIANTS

__all__ = ["tables"]

HEADLINES = ("32x64x112x112", "32x64x56x56", "128x16x32x32", "32x512x7x7", "64x16x4x4", "32x64")
ABOUT = (
    "Speedup over torch (above 1: xhat is faster), both measured alternately in one process. First number: "
    "glibc's default allocation; second: memory that the process keeps (`MALLOC_MMAP_MAX_=0`), for both. With the "
    "default, large results of xhat come in huge pages, and the kernels are only a part of the gain. Forward and "
    "backward through autograd, float32, running statistics updated; torch adds and applies ReLU in place."
)
ABOUT_STEPS = (
    "A training step is forward, cross-entropy, backward and SGD; the second network is `xt.convert` of the "
    "first. Batch norm's share is the time that a step takes beyond the same network with every batch norm "
    "removed (activations stay); a dash means a share too small to distinguish from noise. Gains compare medians; "
    "brackets show the range from the 20th to the 80th percentiles. Peak: resident memory that the steps add to a "
    "process of their own."
)


def _gain(race: Race | None) -> str:
    """How many times as fast as torch."""
    return "" if race is None else f"{race.ratio('torch', 'xhat'):.2f}x"


def _layers(found: Sequence[Race]) -> str:
    """Our time, and the gain of each variant with either kind of memory."""
    lines: dict[str, list[str]] = {}
    for race in found:
        if race.what != "both" or race.case not in HEADLINES or race.dtype != "float32":
            continue
        key = {"case": race.case, "layout": race.layout, "dtype": "float32", "what": "both"}
        alone = find(found, **key, variant="bn", memory="reused")
        pairs = []
        for variant in VARIANTS:
            gains = [_gain(find(found, **key, variant=variant.name, memory=memory)) for memory in MEMORIES]
            pairs.append(" / ".join(gains) if any(gains) else "")
        lines[shape(race)] = [duration(alone.rows["xhat"].median) if alone else "", *pairs]
    head = ["torch / xhat, stock / reused", "xhat", *(variant.name for variant in VARIANTS)]
    return markdown(head, [[name, *cells] for name, cells in lines.items()], 1)


def _share(step: Row, bound: Row) -> str:
    """What a step takes beyond the bound, if that is more than their scatter."""
    return f"{1 - bound.median / step.median:.0%}" if bound.p80 < step.p20 else "–"


def _steps(found: Sequence[Race]) -> str:
    """The steps with memory as glibc gives it."""
    lines = []
    for race in found:
        if race.what != "step" or race.memory != "stock":
            continue
        torch, ours, bound = (race.rows[name] for name in ("torch", "xhat", "identity"))
        peak = _peak(found, race)
        times = duration(torch.median), duration(ours.median)
        gain = f"{_gain(race)} ({torch.p20 / ours.p80:.2f}–{torch.p80 / ours.p20:.2f})"
        shares = f"{_share(torch, bound)} → {_share(ours, bound)}"
        lines.append([f"{race.variant}, {shape(race)}", *times, gain, shares, *peak])
    head = ["a training step", "torch", "xhat", "gain", "batch norm's share", "peak, torch", "xhat"]
    return markdown(head, lines, 1)


def _peak(found: Sequence[Race], step: Race) -> list[str]:
    key = {name: getattr(step, name) for name in ("case", "layout", "variant", "memory")}
    race = find(found, **key, what="peak")
    return [f"{race.rows[name].median:.0f} MB" for name in ("torch", "xhat")] if race else ["", ""]


def tables(machine: dict[str, str], rows: Sequence[Row]) -> dict[str, str]:
    """A few layers, and the training steps."""
    found = races(rows)
    parts = [_layers(found), ABOUT, _steps(found), ABOUT_STEPS, described_as(machine)]
    return {"torch": "\n\n".join(parts) + "\n"}
