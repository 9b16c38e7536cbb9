"""The steps of the demo in order, and their output in a terminal."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import xhat
from xhat.demo.network import Silu
from xhat.demo.picture import draw
from xhat.demo.training import (
    BATCH,
    EVALUATE_EVERY,
    SIZES,
    TARGET,
    Digits,
    Run,
    check_gradients,
    last_batch_norm,
    load,
    train,
)
from xhat.lens.reporter.page import report

if TYPE_CHECKING:
    from xhat.demo.residual import Twin

__all__ = ["run"]

RATE = 0.1  # of the comparison
RATES = (0.03, 0.1, 0.3, 1.0)  # of the table, so that each network is shown at its best rate
TOLERANCE = 1e-6  # of the gradient check: wrong terms err by 1e-2 or more, rounding by about 1e-9
NAMES = ("without batch norm", "with batch norm")

Pair = tuple[Run, Run]  # without and with batch normalization


def run(out: Path, *, seed: int = 0, steps: int = 600, console: Console | None = None) -> int:
    """Check gradients, train, compare, and draw into `out`. Returns the exit status: 1 if a gradient is wrong, else 0.

    If PyTorch is installed, a residual network is trained too, for a sixth of the steps; then it is damaged in three
    ways, diagnosed and treated.
    """
    start = perf_counter()
    console = console or Console(highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    digits = load(seed)
    with threadpool_limits(1):  # 64 x 64 matrices are too small for several threads
        _heading(console, digits)
        if not _gradients_are_right(console, seed):
            return 1
        pairs = _trainings(console, digits, steps, seed)
    chosen = pairs[RATES.index(RATE)]
    _comparison(console, chosen, seed)
    _by_rate(console, pairs)
    picture = out / "digits.png"
    draw(picture, *chosen, digits)
    page = report_of(chosen[1], digits, out / "layer.html")
    console.print(
        f"Picture: [bold]{picture}[/]\nThe last batch norm, to look into: [bold]{page}[/]\n", soft_wrap=True
    )
    if find_spec("torch"):
        _residual_network(console, digits, out, max(1, steps // 6), seed)
        _damaged_networks(console, digits, out, max(1, steps // 6), seed)
    else:
        console.print("Two more parts, with a residual network, need PyTorch, which is missing.")
    console.print(f"[dim]{perf_counter() - start:.0f} s in all.[/]")
    return 0


def report_of(run: Run, digits: Digits, path: Path) -> Path:
    """The report about the last batch-norm layer of a trained network, for one batch, without its fused SiLU."""
    context, dy = last_batch_norm(run.network, digits)
    silu = Silu()
    silu.forward(xhat.batch_norm(context.x, context.gamma, context.beta)[0])
    title = "The last batch norm of the digits network"
    return report(context.x, silu.backward(dy), context.gamma, context.beta, title=title, path=path)


def _heading(console: Console, digits: Digits) -> None:
    engine = xhat.config()
    console.rule("[bold]xhat[/]: batch normalization on real scanned digits", align="left", style="dim")
    console.print(
        f"Digits    {len(digits.x)} to train on, {len(digits.held_x)} held out, 8 x 8 pixels each\n"
        f"Network   {'-'.join(map(str, SIZES))} with SiLU, in NumPy, every gradient in closed form\n"
        f"Engine    xhat {engine['version']}, {engine['isa']}, threads {engine['threads']}\n"
    )


def _section(console: Console, title: str, *columns: str) -> Table:
    """Print a title; returns an empty table."""
    console.print(f"[bold]{title}[/]")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", header_style="dim")
    return table


def _gradients_are_right(console: Console, seed: int) -> bool:
    table = _section(console, "1. Every gradient against central differences", "of", "values", "worst error")
    checked = check_gradients(seed)
    for check in checked:
        table.add_row(check.name, str(check.values), f"{check.error:.1e}")
    console.print(table)
    console.print("[dim]Error over the largest gradient of the same array; in float64, with batch norm.[/]")
    worst = max(check.error for check in checked)
    if worst <= TOLERANCE:
        console.print(f"The worst error of all is [bold green]{worst:.1e}[/]: the closed forms are right.\n")
        return True
    console.print(f"[bold red]The worst error is {worst:.1e}, expected at most {TOLERANCE:.0e}.[/]")
    return False


def _trainings(console: Console, digits: Digits, steps: int, seed: int) -> list[Pair]:
    """Train both networks at every rate, with a progress bar for each network."""
    console.print(f"[bold]2. Training, {steps} steps at each of {len(RATES)} learning rates[/]\n")
    columns = TextColumn("{task.description:<18}"), BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn()
    runs: list[list[Run]] = []
    with Progress(*columns, console=console) as progress:
        bars = [progress.add_task(name, total=steps * len(RATES), start=False) for name in NAMES]
        for bar in bars:
            progress.start_task(bar)
            once = partial(train, digits, batch_norm=bool(runs), steps=steps, seed=seed)
            runs.append([once(rate=rate, advance=partial(progress.advance, bar)) for rate in RATES])
    console.print()
    return list(zip(*runs, strict=True))


def _steps(run: Run) -> str:
    reached, diverged = run.steps_to_target, np.isnan(run.losses[-1])
    if reached is None:
        return "diverged" if diverged else "never"
    return f"{reached}, then diverged" if diverged else str(reached)


def _in_batch_norm(run: Run) -> str:
    seconds = run.network.seconds["BatchNorm"]
    return f"{seconds:.2f} s ({seconds / run.seconds:.0%})" if seconds else "none"


def _comparison(console: Console, pair: Pair, seed: int) -> None:
    """Compare the two networks at one rate."""
    table = _section(console, f"3. The same weights, batches and rate {RATE:g} (seed {seed})", "", *NAMES)
    table.add_row(f"steps to {TARGET:.0%} of the held-out digits", *(_steps(run) for run in pair))
    table.add_row("held-out digits read right at the end", *(f"{run.accuracies[-1][1]:.1%}" for run in pair))
    table.add_row("training loss at the end", *(f"{np.mean(run.losses[-20:]):.4f}" for run in pair))
    table.add_row("time in training", *(f"{run.seconds:.2f} s" for run in pair))
    table.add_row("  of it in batch norm with its SiLU", *(_in_batch_norm(run) for run in pair))
    console.print(table)


def _by_rate(console: Console, pairs: list[Pair]) -> None:
    """Compare the two networks at every rate, and each at its best one."""
    table = _section(console, f"4. Steps to {TARGET:.0%} at other rates", "rate", *NAMES)
    for pair in pairs:
        table.add_row(f"{pair[0].rate:g}", *(_steps(run) for run in pair))
    console.print(table)
    console.print(f"[dim]Plain gradient descent, batches of {BATCH}; looked every {EVALUATE_EVERY} steps.[/]")
    best = []
    for name, runs in zip(NAMES, zip(*pairs, strict=True), strict=True):
        reached = {run.steps_to_target: run.rate for run in reversed(runs) if run.steps_to_target is not None}
        least = min(reached, default=None)
        best.append(f"{name} never" if least is None else f"{name} [bold]{least}[/] ({reached[least]:g})")
    console.print(f"Each at its own best rate: {', '.join(best)}.\n")


def _residual_network(console: Console, digits: Digits, out: Path, steps: int, seed: int) -> None:
    """Train a network in PyTorch twice, with the layers of torch and with ours."""
    from xhat.demo import residual, residual_picture

    console.print(f"[bold]5. A residual network in PyTorch, {steps} steps, twice from the same seed[/]\n")
    columns = TextColumn("{task.description:<18}"), BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("both, in turns", total=steps)
        *pair, changes = residual.train_twins(
            digits, steps=steps, seed=seed, advance=partial(progress.advance, bar)
        )
    console.print()
    table = _section(console, "What xt.convert changed", "", "what it is now", "with")
    for change in changes:
        table.add_row(change.path, change.after.removeprefix("xhat.torch."), change.fused or "")
    console.print(table)
    _twins(console, (pair[0], pair[1]))
    picture = out / "residual.png"
    residual_picture.draw(picture, (pair[0], pair[1]))
    console.print(f"Picture: [bold]{picture}[/]\n", soft_wrap=True)


def _twins(console: Console, pair: "tuple[Twin, Twin]") -> None:
    """Print losses, times and memory of both, and the difference of the losses."""
    from xhat.demo.residual import BATCH, PIXELS, disagreement

    title = f"6. The same weights and batches, {BATCH} digits of {PIXELS} x {PIXELS}"
    table = _section(console, title, "", *(twin.name for twin in pair))
    table.add_row("training loss at the end", *(f"{twin.losses[-1]:.6f}" for twin in pair))
    table.add_row("held-out digits read right at the end", *(f"{twin.accuracy:.1%}" for twin in pair))
    table.add_row("time of a step, median", *(f"{twin.step_time:.1f} ms" for twin in pair))
    table.add_row("kept by autograd for the backward", *(f"{twin.kept:.1f} MB" for twin in pair))
    console.print(table)
    apart = disagreement(pair)
    console.print(f"The losses of all steps agree to {apart.max():.0e} of their value.\n")


def _damaged_networks(console: Console, digits: Digits, out: Path, steps: int, seed: int) -> None:
    """Train the network in three ways that damage its batch norms, and let the doctor find out why."""
    from xhat.demo import damaged

    console.print("[bold]7. The same network, damaged in three ways that happen to people[/]\n")
    columns = TextColumn("{task.description:<18}"), BarColumn(28), MofNCompleteColumn(), TimeElapsedColumn()
    found: list[damaged.Case] = []
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("train, and treat", total=4 * steps)
        for case in damaged.cases(digits, steps=steps, seed=seed, advance=partial(progress.advance, bar)):
            found.append(case)
        progress.update(bar, completed=4 * steps)
    console.print()
    table = _section(console, "8. What the doctor says", "damage", "cause", "before", "after", "treated by")
    table.columns[1].justify = "left"
    for case in found:
        cause = case.diagnosis.findings[0].cause if case.diagnosis.findings else "none"
        remedy = "treat()" if case.treated else "shuffling"
        table.add_row(case.name, cause, f"{case.before:.1%}", f"{case.after:.1%}", remedy)
    console.print(table)
    console.print(
        "[dim]Held-out digits read right. treat() recalibrates the running statistics. It can't treat batches "
        f"that are sorted, so the last network was trained for {steps} more steps with shuffled ones.[/]"
    )
    page = out / "doctor.html"
    found[0].diagnosis.to_html(page)
    console.print(f"The doctor's page about the first one: [bold]{page}[/]\n", soft_wrap=True)
