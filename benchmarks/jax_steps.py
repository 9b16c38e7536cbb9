"""`python -m benchmarks.jax_steps`: training steps of ResNet-20 in Flax, with its batch norm and with ours.

    python -m benchmarks.jax_steps              print the table
    python -m benchmarks.jax_steps --write      and put it into docs/jax.md

Whole steps (forward, cross-entropy, backward, SGD with momentum) in one jit, float32, NHWC. The steps of all networks
take turns in one process, and the least CPU time of each counts, so that what else runs on the machine weighs little.
"""

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

# One core: XLA's threads would measure how busy the others are.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import numpy as np
import optax
from flax import nnx
from rich.console import Console

import xhat.flax
from benchmarks.harness.machine import machine
from benchmarks.harness.report import described_as, fill, markdown

__all__ = ["ResNet20", "main"]

PAGE = Path(__file__).parent.parent / "docs" / "jax.md"
BATCH = 64
NORMS: dict[str, Callable[..., Any]] = {
    "Flax": nnx.BatchNorm,
    "Flax, use_fast_variance=False": lambda *a, **k: nnx.BatchNorm(*a, use_fast_variance=False, **k),
    "xhat": xhat.flax.nnx.BatchNorm,
}


class Block(nnx.Module):
    """Two convolutions with batch norm, and a shortcut."""

    def __init__(self, norm: Any, inputs: int, outputs: int, rngs: Any) -> None:
        stride = outputs // inputs
        self.first = nnx.Conv(inputs, outputs, (3, 3), strides=stride, use_bias=False, rngs=rngs)
        self.second = nnx.Conv(outputs, outputs, (3, 3), use_bias=False, rngs=rngs)
        self.norms = nnx.List([norm(outputs, rngs=rngs) for _ in range(2)])
        self.stride, self.more = stride, outputs - inputs

    def __call__(self, x: Any) -> Any:
        """relu(x + ...), where x is subsampled and padded with zeros if the shape changes."""
        y = nnx.relu(self.norms[0](self.first(x)))
        y = self.norms[1](self.second(y))
        short = jax.numpy.pad(x[:, :: self.stride, :: self.stride], [(0, 0)] * 3 + [(0, self.more)])
        return nnx.relu(y + short)


class ResNet20(nnx.Module):
    """Nine blocks of 16, 32 and 64 channels, for images (N, 32, 32, 3)."""

    def __init__(self, norm: Any) -> None:
        rngs = nnx.Rngs(0)
        self.stem = nnx.Conv(3, 16, (3, 3), use_bias=False, rngs=rngs)
        self.norm = norm(16, rngs=rngs)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = nnx.List([Block(norm, a, b, rngs) for a, b in pairwise(widths)])
        self.last = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        """The logits."""
        x = nnx.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean((1, 2)))


def stepper(norm: Any) -> Callable[[], float]:
    """A function that takes a step and gives its loss."""
    net = ResNet20(norm)
    optimizer = nnx.Optimizer(net, optax.sgd(0.01, momentum=0.9), wrt=nnx.Param)
    rng = np.random.default_rng(0)
    x = jax.numpy.asarray(rng.normal(size=(BATCH, 32, 32, 3)), "float32")
    labels = jax.numpy.asarray(rng.integers(10, size=BATCH))
    graph, state = nnx.split((net, optimizer))

    @jax.jit
    def step(state: Any) -> Any:
        net, optimizer = nnx.merge(graph, state)

        def loss(net: Any) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(net(x), labels).mean()

        value, grads = nnx.value_and_grad(loss)(net)
        optimizer.update(net, grads)
        return value, nnx.state((net, optimizer))

    def run() -> float:
        nonlocal state
        value, state = jax.block_until_ready(step(state))
        return float(value)

    return run


def measured(rounds: int) -> dict[str, list[float]]:
    """The least CPU times of a step: of all rounds, of the first half and of the second."""
    steps = {name: stepper(norm) for name, norm in NORMS.items()}
    losses = {name: [run() for _ in range(3)] for name, run in steps.items()}
    for name, loss in losses.items():
        if not np.allclose(loss, losses["Flax"], rtol=1e-2):
            raise SystemExit(f"{name} has losses {loss}, Flax {losses['Flax']}: nothing is timed")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, run in steps.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    half = rounds // 2
    return {name: [min(t), min(t[:half]), min(t[half:])] for name, t in times.items()}


def table(found: dict[str, list[float]], rounds: int) -> str:
    """Markdown, and what it is of."""
    of = found["Flax"]
    rows = [
        [name, f"{1e3 * t[0]:.0f} ms", *(f"{a / b:.2f}x" for a, b in zip(t, of, strict=True))]
        for name, t in found.items()
    ]
    text = (
        f"A training step of ResNet-20, batch {BATCH} of (32, 32, 3), one jit, one thread: the least CPU time of "
        f"{rounds} steps that take turns, and its ratio to Flax's over all rounds, the first half and the second. "
        f"{described_as(machine(1))}"
    )
    return f"{markdown(['', 'least', 'ratio', 'first half', 'second half'], rows, 1)}\n\n{text}\n"


def main() -> None:
    """Verifies, measures, prints."""
    parser = argparse.ArgumentParser(prog="benchmarks.jax_steps", description="ResNet-20 in Flax.")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--write", action="store_true", help="fill docs/jax.md")
    options = parser.parse_args()
    shown = table(measured(options.rounds), options.rounds)
    Console().print(shown)
    if options.write:
        fill(PAGE, "steps", shown)


if __name__ == "__main__":
    main()
