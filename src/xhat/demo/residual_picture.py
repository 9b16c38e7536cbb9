"""The picture of the two trainings of a residual network: losses, their difference, times and memory.

Only derived quantities of the plots are computed here.
"""

from pathlib import Path
from typing import Any

import numpy as np

from xhat.demo.picture import INK, NORMALIZED, PLAIN, page
from xhat.demo.residual import Twin, disagreement

__all__ = ["draw"]

TITLE = "One residual network, trained twice from the same seed"
FLOAT32 = 2.0**-23  # the distance from 1 to the next number


def draw(path: Path, pair: tuple[Twin, Twin]) -> None:
    """Write the picture as a PNG; torch's layers in grey, ours in blue."""
    with page(path, TITLE, (12, 6.6)) as figure:
        places = figure.add_gridspec(2, 2, height_ratios=(4, 1))
        _losses(figure.add_subplot(places[0, 0]), pair)
        _disagreement(figure.add_subplot(places[0, 1]), pair)
        times, memory = [t.step_time for t in pair], [t.kept for t in pair]
        _bars(figure.add_subplot(places[1, 0]), "Time of a step", pair, times, "ms")
        _bars(figure.add_subplot(places[1, 1]), "Kept by autograd for the backward", pair, memory, "MB")


def _losses(axes: Any, pair: tuple[Twin, Twin]) -> None:
    """Draw our losses as a thin line over those of torch, so that both are visible if they coincide."""
    axes.set_title("Training loss")
    looks = {"color": PLAIN, "linewidth": 6}, {"color": NORMALIZED, "linewidth": 1.8}
    for twin, look in zip(pair, looks, strict=True):
        steps = np.arange(1, len(twin.losses) + 1)
        axes.plot(steps, twin.losses, "." if len(steps) == 1 else "-", label=twin.name, **look)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("steps")
    axes.grid(axis="y")
    axes.legend(loc="upper right")


def _disagreement(axes: Any, pair: tuple[Twin, Twin]) -> None:
    apart = disagreement(pair)
    axes.set_title("How far the two losses are apart")
    axes.axhline(FLOAT32, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="one float32 step, 1.2e-7")
    shown = np.maximum(apart, 1e-8)  # equal losses are drawn at the edge of the logarithmic axis
    axes.plot(
        np.arange(1, len(shown) + 1),
        shown,
        ".",
        color=NORMALIZED,
        label="over the larger one (at the bottom: equal)",
    )
    axes.set_yscale("log")
    axes.set_ylim(1e-8, max(1e-4, 10 * float(shown.max())))
    axes.set_xlabel("steps")
    axes.grid(axis="y")
    axes.legend(loc="upper left")


def _bars(axes: Any, title: str, pair: tuple[Twin, Twin], values: list[float], unit: str) -> None:
    axes.set_title(title)
    bars = axes.barh([twin.name for twin in pair], values, color=[PLAIN, NORMALIZED], height=0.7)
    axes.bar_label(bars, labels=[f"{value:.1f} {unit}" for value in values], padding=6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(values))
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
