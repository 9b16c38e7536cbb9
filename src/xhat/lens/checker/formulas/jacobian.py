"""The Jacobian of a gradient by dy, for each channel, and its fit to terms.

A channel's dx depends on the dy of this channel alone, so that one run gives a column for every channel. What the
factors mean is in `formula`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import Forward
from xhat.lens.checker.formulas.powers import Scales
from xhat.lens.checker.lines.values import by_channel

__all__ = ["Jacobians", "basis", "impulses", "jacobians", "longer", "solve", "weights"]


@dataclass
class Jacobians:
    """The Jacobian of each channel of each batch, with its x̂; and why there is none, if so."""

    rows: list[tuple[Array, Array]]
    problem: str | None = None


def longer(runner: Runner, batch: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """A third batch of another length, so that N and N - 1 are told apart."""
    p = batch[0]
    if p.layout.name == "NC, square" or runner.spec.kind == "jax":  # where every shape is compiled anew
        return batch
    axis, rng = p.axes("batch")[0], np.random.default_rng(7)
    shape = list(p.x.shape)
    shape[axis] = max(2, shape[axis] // 2)
    sample = np.take(p.x, range(shape[axis]), axis=axis)
    x = 1.5 * sample + rng.normal(size=shape) * np.abs(sample).mean()
    longer_x, longer_dy = (
        np.concatenate([a, b], axis=axis).astype(np.float32).astype(np.float64)
        for a, b in ((p.x, x), (p.dy, rng.normal(size=shape)))
    )
    return (*batch, replace(p, x=longer_x, dy=longer_dy))


def impulses(runner: Runner, p: Probe, correction: int) -> dict[str, list[Array]]:
    """The outputs for dy = 0, for dy = 1 at one position of every channel, for any dy, and for dy in one channel."""
    axis = p.layout.axis
    found: dict[str, list[Array]] = {}
    for dy in _impulses_of(np.moveaxis(p.x, axis, 0).shape):
        outputs = runner.run(replace(p, dy=np.moveaxis(dy, 0, axis)), correction).outputs
        for name, value in outputs.items():
            full = p.x.shape if name in ("dx", "y") else (p.channels,)
            found.setdefault(name, []).append(by_channel(value.reshape(full), p))
    return found


def _impulses_of(shape: tuple[int, ...]) -> Iterator[Array]:
    """All these dy, with the channels first."""
    yield np.zeros(shape)
    for j in range(int(np.prod(shape[1:]))):
        dy = np.zeros((shape[0], int(np.prod(shape[1:]))))
        dy[:, j] = 1
        yield dy.reshape(shape)
    rng = np.random.default_rng(3)
    yield rng.normal(size=shape)
    alone = np.zeros(shape)
    alone[0] = rng.normal(size=shape[1:])
    yield alone


def jacobians(
    output: str,
    runs: list[dict[str, list[Array]]],
    forwards: list[Forward],
    batch: tuple[Probe, ...],
    near: float,
) -> Jacobians:
    """The Jacobians of an output from the results of `impulses`, and whether they describe it."""
    read = Jacobians([])
    for run, f, p in zip(runs, forwards, batch, strict=True):
        zero, *columns, drawn, alone = (v if output == "dx" else v[:, :1] for v in run[output])
        found = np.stack([c - zero for c in columns], axis=-1)  # channel, position of dx, position of dy
        *_, dy, _ = _impulses_of(np.moveaxis(p.x, p.layout.axis, 0).shape)
        linear = np.einsum("cij,cj->ci", found, dy.reshape(p.channels, -1))
        bound = near * np.abs(found).max()
        if np.abs((alone - zero)[1:]).max(initial=0) > bound:
            read.problem = (
                "a channel depends on the dy of other channels: a sum over a wrong axis, or a reshape"
            )
        elif np.abs(linear - (drawn - zero)).max() > bound:
            read.problem = "it is not linear in dy"
        elif np.abs(zero).max() > bound:
            read.problem = "it is not 0 for dy = 0"
        read.rows += list(zip(found, by_channel(f.xhat, p), strict=True))
        if read.problem:
            break
    return read


def basis(output: str, xhat: Array) -> dict[str, Array]:
    """The Jacobians of the terms that an output may have, in one channel."""
    one = np.ones(len(xhat))
    if output != "dx":
        rows = {"Σ dy": one, "Σ dy x̂": xhat, "Σ dy x̂²": xhat**2}
        return {name: row[None] for name, row in rows.items()}
    return {
        "dy": np.eye(len(xhat)),
        "Σ dy": np.outer(one, one),
        "x̂ Σ(dy x̂)": np.outer(xhat, xhat),
        "x̂ Σ dy": np.outer(xhat, one),
        "Σ(dy x̂)": np.outer(one, xhat),
        "x̂ dy": np.diag(xhat),
        "x̂² dy": np.diag(xhat**2),
        "x̂² Σ dy": np.outer(xhat**2, one),
    }


def solve(jacobian: Array, parts: dict[str, Array]) -> tuple[dict[str, float], float]:
    """The factor of each part, and the largest error of their sum."""
    matrix = np.array([v.ravel() for v in parts.values()]).T
    found = np.linalg.lstsq(matrix, jacobian.ravel(), rcond=1e-10)[0]
    return dict(zip(parts, found, strict=True)), float(np.abs(matrix @ found - jacobian.ravel()).max())


def weights(output: str, rows: list[tuple[Array, Array]], scales: Scales, correction: int) -> str:
    """How often each value of dy is counted in the sums, if only that differs."""
    if output != "dx":
        per = [j[0] / (h if output == "dgamma" else np.ones(len(h))) for j, h in rows]
    else:
        per = []
        for k, (jacobian, xhat) in enumerate(rows):
            m = len(xhat)
            exact = (
                -scales.gamma[k] * scales.roots["r"][k] * (1 / m + np.outer(xhat, xhat) / (m - correction))
            )
            off = ~np.eye(m, dtype=bool)
            per.append(np.array([np.median((jacobian[:, j] / exact[:, j])[off[:, j]]) for j in range(m)]))
    first = per[0]
    odd = [j for j, w in enumerate(first) if abs(w - 1) > 1e-5]
    alike = all(np.abs(w - first).max() < 1e-4 for w in per if len(w) == len(first))
    if not odd or len(odd) > len(first) // 2 or not alike:
        return ""
    shown = ", ".join(f"value {j + 1} of {len(first)} {_times(first[j])}" for j in odd)
    return f"; the sums count {shown}, and the others once"


def _times(weight: float) -> str:
    return {0.0: "not at all", 2.0: "twice"}.get(round(float(weight), 4), f"{weight:.3g} times")
