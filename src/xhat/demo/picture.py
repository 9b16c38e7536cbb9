"""The picture of the demo: two trainings, and the three paths of the gradient through one layer.

Only derived quantities of the plots are computed here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

import xhat
from xhat import equations
from xhat.demo.network import Array
from xhat.demo.training import TARGET, Digits, Run, last_batch_norm

__all__ = ["INK", "NORMALIZED", "PLAIN", "LayerPaths", "draw", "page", "paths_of"]

INK, QUIET, RULE = "#22262b", "#6b7280", "#e3e6ea"
PLAIN, NORMALIZED = "#98a1b0", "#0b6e99"  # without and with batch normalization
DIRECT, MEAN, VARIANCE = "#98a1b0", "#d1495b", "#e09f3e"
TITLE = "Batch normalization on scanned digits, every gradient in closed form"
STYLE: Any = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "legend.frameon": False,
}


class LayerPaths(NamedTuple):
    """The three paths of dx through one layer and its xhat, each of shape (digits, channels)."""

    xhat: Array
    direct: Array
    mean: Array
    variance: Array


def paths_of(context: xhat.Context, dy: Array) -> LayerPaths:
    """The paths through a layer, from the context of its forward and the gradient of its output."""
    rstd = equations.reciprocal_std(context.var, context.plan.options.eps, np.sqrt)
    xhat_ = equations.standardize(context.x, context.mean, rstd)
    return LayerPaths(xhat_, *xhat.gradient_paths(dy, context))


@contextmanager
def page(path: Path, title: str, size: tuple[float, float]) -> Iterator[Figure]:
    """A figure that is written as a PNG on exit; needs no display, and ignores the matplotlib settings of the user."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        layout = ConstrainedLayoutEngine(w_pad=0.2, h_pad=0.2, wspace=0.04, hspace=0.04)
        figure = Figure(figsize=size, layout=layout, facecolor="white")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.03, ha="left", fontsize=17, weight="bold")
        yield figure
        figure.savefig(path, dpi=150)


def draw(path: Path, without: Run, with_bn: Run, digits: Digits) -> None:
    """Write the picture of the two trainings and the paths of the last layer."""
    paths = paths_of(*last_batch_norm(with_bn.network, digits))
    with page(path, TITLE, (12, 9.4)) as figure:
        panels = figure.subplots(2, 2)
        _losses(panels[0, 0], without, with_bn)
        _accuracies(panels[0, 1], without, with_bn)
        channel = _removed(panels[1, 1], paths)
        _one_channel(panels[1, 0], paths, channel)


def _curves(without: Run, with_bn: Run) -> tuple[tuple[Run, str, str], ...]:
    return (with_bn, NORMALIZED, "with batch norm"), (without, PLAIN, "without")


def _losses(axes: Any, without: Run, with_bn: Run) -> None:
    axes.set_title(f"Training loss at rate {with_bn.rate:g}: same weights, same batches")
    for run, color, name in _curves(without, with_bn):
        losses = np.array(run.losses)
        steps = np.arange(1, len(losses) + 1)
        width = max(1, min(25, len(losses) // 8))
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(steps, losses, color=color, alpha=0.3, linewidth=0.8)
        axes.plot(steps[width - 1 :], smooth, color=color, linewidth=2.4, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    axes.yaxis.set_minor_formatter(
        "{x:g}" if high < 10 * low else ""
    )  # a range below a decade needs minor labels
    axes.set_xlim(0, len(with_bn.losses))
    axes.set_xlabel("steps")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y")
    axes.legend(loc="upper right")


def _accuracies(axes: Any, without: Run, with_bn: Run) -> None:
    axes.set_title("Held-out digits that are read right")
    axes.axhline(TARGET, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
    for run, color, name in _curves(without, with_bn):
        steps, shares = zip(*run.accuracies, strict=True)
        reached = run.steps_to_target
        label = f"{name}: {TARGET:.0%} after {reached} steps" if reached else f"{name}: never {TARGET:.0%}"
        axes.plot(steps, shares, "." if len(steps) == 1 else "-", color=color, linewidth=2.4, label=label)
        if reached:
            axes.plot(reached, TARGET, "o", color=color, markersize=11, markeredgecolor="white", zorder=3)
    best = max(share for run in (without, with_bn) for _, share in run.accuracies)
    axes.set_ylim(0.7 if best > 0.8 else 0, 1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlim(0, len(with_bn.losses))
    axes.set_xlabel("steps")
    axes.locator_params(axis="x", integer=True)
    axes.grid(axis="y")
    axes.legend(loc="lower right")


def _removed(axes: Any, paths: LayerPaths) -> int:
    """The shares of the gradient that the mean and variance paths remove; returns the channel with the largest."""
    size = np.sum(paths.direct**2, axis=0)
    shares = [np.sum(path**2, axis=0) / size for path in (paths.mean, paths.variance)]
    order = np.argsort(-sum(shares), kind="stable")
    places = np.arange(1, len(order) + 1)
    axes.set_title("The part of the gradient that batch norm removes")
    axes.bar(places, shares[0][order], color=MEAN, width=0.8, label="through the mean")
    axes.bar(places, shares[1][order], 0.8, shares[0][order], color=VARIANCE, label="through the variance")
    axes.set_xlim(0.3, len(order) + 0.7)
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    axes.set_xlabel("the channels of that layer, most first")
    axes.set_ylabel("share of the direct path's square")
    axes.grid(axis="y")
    axes.legend(loc="upper right")
    return int(order[0])


def _one_channel(axes: Any, paths: LayerPaths, channel: int) -> None:
    """The paths plotted over xhat: the mean path is a horizontal line, the variance path a line through 0."""
    x, *three = (path[:, channel] for path in paths)
    direct, mean, variance = (path / np.abs(three[0]).max() for path in three)
    dx = direct + mean + variance
    ends = [np.argmin(x), np.argmax(x)]
    axes.set_title(f"Three paths to dx (last batch norm, channel {channel})")
    axes.axhline(0, color=QUIET, linewidth=0.8)
    axes.vlines(x, direct, dx, color=DIRECT, linewidth=0.8, alpha=0.6)
    axes.plot(x[ends], mean[ends], color=MEAN, linewidth=2.4, label="through the mean")
    axes.plot(x[ends], variance[ends], color=VARIANCE, linewidth=2.4, label="through the variance")
    axes.scatter(x, direct, s=26, facecolors="white", edgecolors=DIRECT, label="direct", zorder=3)
    axes.scatter(x, dx, s=26, color=NORMALIZED, linewidths=0, label="dx, the sum of the three", zorder=3)
    axes.set_ylabel("over the largest direct one")
    axes.set_xlabel(f"xhat, the normalized input, of the {len(x)} digits of a batch")
    axes.grid(axis="y")
    axes.legend(loc="best")
