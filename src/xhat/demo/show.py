"""The demo from its first line to its last: what is run, in which order, and how it is shown in a terminal."""

from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import xhat
from xhat.demo.picture import draw
from xhat.demo.training import (
    BATCH,
    LOOK_EVERY,
    SIZES,
    TARGET,
    Checked,
    Digits,
    Run,
    check_gradients,
    load,
    train,
)

__all__ = ["run"]

RATE = 0.1  # of the comparison
RATES = (0.03, 0.1, 0.3, 1.0)  # of the table beside it: no network is judged by a rate that does not suit it
TOLERANCE = 1e-6  # of the gradient check: a wrong term is off by 1e-2 and more, rounding by about 1e-9

NAMES = ("without batch norm", "with batch norm")
Pair = tuple[Run, Run]  # without and with batch normalization


def run(out: Path, *, seed: int = 0, steps: int = 600, console: Console | None = None) -> int:
    """Check, train, compare, draw into `out`; the exit status: 0, or 1 when a gradient is wrong."""
    start = perf_counter()
    console = console or Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    digits = load(seed)
    _heading(console, digits)

    checked = check_gradients(seed)
    worst = max(check.error for check in checked)
    console.print(_gradients(checked))
    if not worst <= TOLERANCE:
        console.print(f"[bold red]The worst error is {worst:.1e}, expected at most {TOLERANCE:.0e}.[/]")
        return 1
    console.print(f"The worst error of all is [bold green]{worst:.1e}[/]: the closed forms are right.\n")

    pairs = _trainings(console, digits, steps, seed)
    chosen = next(pair for pair in pairs if pair[0].rate == RATE)
    console.print(_comparison(chosen, seed))
    console.print(_by_rate(pairs))
    console.print(_best(pairs) + "\n")
    picture = out / "digits.png"
    draw(picture, *chosen, digits)
    console.print(f"Picture: [bold]{picture}[/]", soft_wrap=True)
    console.print(f"[dim]{perf_counter() - start:.0f} s in all.[/]")
    return 0


def _heading(console: Console, digits: Digits) -> None:
    engine = xhat.config()
    console.rule("[bold]xhat[/] · batch normalization on scanned digits", align="left", style="dim")
    console.print(
        f"{len(digits.x)} digits to train on, {len(digits.held_x)} held out, 8 x 8 pixels each "
        "(UCI, through scikit-learn).\n"
        f"Network {'-'.join(map(str, SIZES))} with SiLU, in NumPy alone: no autodiff, every gradient in closed form.\n"
        f"[dim]Engine: xhat {engine['version']}, {engine['isa']}, {engine['threads']} threads.[/]\n"
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    return table


def _gradients(checked: list[Checked]) -> Table:
    table = _table(
        "1. Closed-form gradients against central differences, float64", "of", "values", "worst error"
    )
    for check in checked:
        table.add_row(check.name, str(check.values), f"{check.error:.1e}")
    table.caption = (
        "error over the largest gradient of the same array; the pixels' gradient passes every layer"
    )
    table.caption_justify = "left"
    return table


def _trainings(console: Console, digits: Digits, steps: int, seed: int) -> list[Pair]:
    """Both networks at every rate, a progress bar for each network."""
    console.print(f"[bold]2. Training, {steps} steps at each of {len(RATES)} learning rates[/]\n")
    columns = TextColumn("{task.description:<18}"), BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn()
    runs: list[list[Run]] = []
    with Progress(*columns, console=console) as progress:
        bars = [progress.add_task(name, total=steps * len(RATES), start=False) for name in NAMES]
        for bar in bars:
            progress.start_task(bar)
            options = {"batch_norm": bool(runs), "steps": steps, "seed": seed}
            advance = partial(progress.advance, bar)
            runs.append([train(digits, rate=rate, advance=advance, **options) for rate in RATES])
    console.print()
    return list(zip(*runs, strict=True))


def _steps(run: Run) -> str:
    if np.isnan(run.losses[-1]):
        return "diverged"
    return "never" if run.steps_to_target is None else str(run.steps_to_target)


def _comparison(pair: Pair, seed: int) -> Table:
    table = _table(f"3. The same weights, the same batches, rate {RATE:g} (seed {seed})", "", *NAMES)
    table.add_row(f"steps to {TARGET:.0%} held out", *(_steps(run) for run in pair))
    table.add_row("held-out accuracy, end", *(f"{run.accuracies[-1][1]:.1%}" for run in pair))
    table.add_row("training loss, end", *(f"{np.mean(run.losses[-LOOK_EVERY:]):.4f}" for run in pair))
    table.add_row("time of a step", *(f"{run.seconds / len(run.losses) * 1e6:.0f} µs" for run in pair))
    table.add_row("  of it in batch norm", *(_in_batch_norm(run) for run in pair))
    return table


def _in_batch_norm(run: Run) -> str:
    """Forward and backward, the fused SiLU included."""
    seconds = run.network.seconds["BatchNorm"]
    return f"{seconds / len(run.losses) * 1e6:.0f} µs ({seconds / run.seconds:.0%})" if seconds else "none"


def _by_rate(pairs: list[Pair]) -> Table:
    table = _table(f"4. Steps to {TARGET:.0%}, at every rate", "rate", *NAMES)
    for pair in pairs:
        table.add_row(f"{pair[0].rate:g}", *(_steps(run) for run in pair))
    table.caption = f"looked every {LOOK_EVERY} steps; plain gradient descent, batches of {BATCH}"
    table.caption_justify = "left"
    return table


def _best(pairs: list[Pair]) -> str:
    """One sentence: each network at the rate that suits it most."""
    parts = []
    for name, runs in zip(NAMES, zip(*pairs, strict=True), strict=True):
        reached = [run for run in runs if run.steps_to_target is not None]
        if reached:
            best = min(reached, key=lambda run: run.steps_to_target or 0)
            parts.append(f"[bold]{best.steps_to_target}[/] steps {name} ({best.rate:g})")
        else:
            parts.append(f"never {name}")
    return f"Each at the rate that suits it most: {', '.join(parts)}."
