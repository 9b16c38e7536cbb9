"""The exact steps of a forward and a backward by name, and which of them an array of any shape equals.

The values come from `reference` and `equations`; no formula of its own lives here but products and sums of these.
An array is read in the order of the axes of x, so that a transposed or reshaped copy is recognized, and a reshape that
mixes channels is not.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from math import prod
from typing import Any

import numpy as np

from xhat import equations
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import Forward

__all__ = ["Arranged", "Steps", "arrangements", "steps_of"]


@dataclass
class Steps:
    """Name -> value: `whole` ones have the shape of x, `by_channel` ones that of the channels, `numbers` none."""

    probe: Probe
    whole: dict[str, Array] = field(default_factory=dict)
    by_channel: dict[str, Array] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def of_kind(self, kind: str) -> dict[str, Array]:
        """The steps that an array of this kind may be: a whole one may be a broadcast value of the channels."""
        return self.by_channel if kind == "by channel" else self._with_broadcast

    def named(self, kind: str, value: Array, tolerance: float) -> list[str]:
        """The names of the steps that equal a value of this kind."""
        names, rows, sizes = self._tables[kind]
        with np.errstate(invalid="ignore"):
            near = np.abs(rows - value.ravel()).max(axis=1) <= tolerance * sizes
        return [names[k] for k in np.flatnonzero(near & (sizes > 0))]

    @cached_property
    def _tables(self) -> dict[str, tuple[list[str], Array, Array]]:
        """For each kind the names, the values as rows, and the largest magnitude of each."""
        found = {}
        for kind in ("whole", "by channel"):
            known = self.of_kind(kind)
            rows = np.array([v.ravel() for v in known.values()])
            found[kind] = (list(known), rows, np.abs(rows).max(axis=1))
        return found

    @cached_property
    def _with_broadcast(self) -> dict[str, Array]:
        p = self.probe
        wide = [1] * p.x.ndim
        wide[p.layout.axis] = p.channels
        spread = {n: np.broadcast_to(v.reshape(wide), p.x.shape) for n, v in self.by_channel.items()}
        return self.whole | {n: v for n, v in spread.items() if n not in self.whole}


def steps_of(p: Probe, correction: int) -> Steps:
    """All steps of one batch that people write down, in the order of the computation."""
    found, f = Steps(p), reference.forward(p, correction)
    m, letter = float(p.count()), "m" if p.x.ndim > 2 else "N"
    _forward(found, p, f, m - correction)
    _backward(found, p, f, m, correction)
    batch = p.count("batch")
    numbers = {letter: m, f"{letter} - 1": m - 1, "ε": p.eps, "C": float(p.channels)}
    numbers |= {f"1/{letter}": 1 / m, f"1/({letter} - 1)": 1 / (m - 1)}
    if letter == "m":
        numbers |= {"N": float(batch), "N C": float(batch * p.channels), "all values": float(p.x.size)}
        numbers |= {"m/N": m / batch}
    found.numbers = numbers
    if letter == "m":
        found.whole = {n.replace("/N", "/m"): v for n, v in found.whole.items()}
        found.by_channel = {n.replace("/N", "/m"): v for n, v in found.by_channel.items()}
    return found


def _add(found: Steps, whole: dict[str, Any], by_channel: dict[str, Any]) -> None:
    p = found.probe
    found.whole |= {n: np.broadcast_to(v, p.x.shape) for n, v in whole.items()}
    found.by_channel |= {n: np.broadcast_to(np.ravel(v), (p.channels,)) for n, v in by_channel.items()}


def _forward(found: Steps, p: Probe, f: Forward, divisor: float) -> None:
    total, centred, r = p.total(), p.x - f.mu, f.rstd
    by_channel = {
        "μ": f.mu,
        "σ²": f.var,
        "σ² + ε": f.var + p.eps,
        "√(σ² + ε)": 1 / r,
        "r": r,
        "r²": r**2,
        "r³": r**3,
        "γ": p.gamma,
        "β": p.beta,
        "γ r": p.gamma * r,
        "γ r μ": p.gamma * r * f.mu,
        "β - γ r μ": p.beta - p.gamma * r * f.mu,
        "μ²": f.mu**2,
        "Σ x": total(p.x),
        "Σ x²": total(p.x**2),
        "Σ x²/N": total(p.x**2) / p.count(),
        "Σ (x - μ)²": total(centred**2),
        "σ": np.sqrt(f.var),
    }
    whole = {"x": p.x, "x - μ": centred, "x̂": f.xhat, "γ x̂": p.gamma * f.xhat, "y": f.y, "dy": p.dy}
    whole |= {"x²": p.x**2, "(x - μ)²": centred**2, "γ x": p.gamma * p.x, "γ r x": p.gamma * r * p.x}
    whole |= {"γ (x - μ)": p.gamma * centred, "x̂²": f.xhat**2, "(x - μ)²/N": centred**2 / divisor}
    _add(found, whole, by_channel)


def _backward(found: Steps, p: Probe, f: Forward, m: float, correction: int) -> None:
    total, centred, r, divisor = p.total(), p.x - f.mu, f.rstd, m - correction
    dxhat = p.dy * p.gamma
    sum_dy, sum_dy_xhat = equations.gradient_sums(p.dy, f.xhat, total)
    sums = equations.gradient_sums(dxhat, f.xhat, total)
    drstd = total(dxhat * centred)
    dvar = -0.5 * drstd * r**3
    dmu = -r * sums[0]
    by_channel = {
        "Σ dy": sum_dy,
        "Σ dy x̂": sum_dy_xhat,
        "Σ dy/N": sum_dy / m,
        "Σ (dy x̂)/N": sum_dy_xhat / divisor,
        "Σ dx̂": sums[0],
        "Σ dx̂ x̂": sums[1],
        "Σ dx̂/N": sums[0] / m,
        "Σ (dx̂ x̂)/N": sums[1] / divisor,
        "Σ dy (x - μ)": total(p.dy * centred),
        "Σ dx̂ (x - μ)": drstd,
        "d√(σ² + ε)": -drstd * r**2,
        "dσ²": dvar,
        "dμ": dmu,
        "dσ²/N": dvar / divisor,
        "dμ/N": dmu / m,
        "γ r dβ": p.gamma * r * sum_dy,
        "Σ dx̂ r": r * sums[0],
        "γ r dγ": p.gamma * r * sum_dy_xhat,
        "Σ dx̂ x": total(dxhat * p.x),
        "Σ dy x": total(p.dy * p.x),
    }
    direct = {"dx̂": dxhat, "dx̂ r": dxhat * r, "dy r": p.dy * r, "dy x̂": p.dy * f.xhat, "dx̂ x̂": dxhat * f.xhat}
    direct |= {"dx̂ (x - μ)": dxhat * centred, "dy (x - μ)": p.dy * centred}
    direct |= {"dx̂ x": dxhat * p.x, "dy x": p.dy * p.x}
    _add(found, direct, by_channel)
    _paths(found, p, f, m, correction)


def _paths(found: Steps, p: Probe, f: Forward, m: float, correction: int) -> None:
    total, centred, r, divisor = p.total(), p.x - f.mu, f.rstd, m - correction
    dxhat = p.dy * p.gamma
    sum_dy, sum_dy_xhat = equations.gradient_sums(p.dy, f.xhat, total)
    sums = equations.gradient_sums(dxhat, f.xhat, total)
    paths = equations.paths(dxhat, f.xhat, *sums, rstd=r, m=p.count(), correction=correction)
    drstd = total(dxhat * centred)
    dvar = -0.5 * drstd * r**3
    products = {
        "(x - μ) dσ²": centred * dvar,
        "2 (x - μ) dσ²/N": 2 * centred * dvar / divisor,
        "x̂ Σ dy x̂": f.xhat * sum_dy_xhat,
        "x̂ Σ dx̂ x̂": f.xhat * sums[1],
        "d(x - μ)": paths.direct + paths.variance,
        "x̂ Σ (dy x̂)/N": f.xhat * sum_dy_xhat / divisor,
        "x̂ Σ (dx̂ x̂)/N": f.xhat * sums[1] / divisor,
        "(x - μ) Σ dy (x - μ)": centred * total(p.dy * centred),
        "(x - μ) Σ dx̂ (x - μ)": centred * drstd,
        "2 (x - μ)/N": 2 * centred / divisor,
        "dμ/N": np.broadcast_to(-r * sums[0] / m, p.x.shape),
        "dx without its path through σ²": paths.direct + paths.mean,
        "the paths through μ and σ²": paths.mean + paths.variance,
        "dy - Σ dy/N": p.dy - sum_dy / m,
        "dx̂ - Σ dx̂/N": dxhat - sums[0] / m,
        "Σ dx̂/N + x̂ Σ (dx̂ x̂)/N": sums[0] / m + f.xhat * sums[1] / divisor,
        "Σ dy/N + x̂ Σ (dy x̂)/N": sum_dy / m + f.xhat * sum_dy_xhat / divisor,
        "dx̂ - x̂ Σ (dx̂ x̂)/N": dxhat - f.xhat * sums[1] / divisor,
        "dx": paths.direct + paths.mean + paths.variance,
    }
    dx = products["dx"]
    products |= {"dx/r": dx / r, "dx/(γ r)": dx / (p.gamma * r), "dx/γ": dx / p.gamma}
    _add(found, products, {})


@dataclass(frozen=True)
class Arranged:
    """How an array is arranged: its kind, its value in the axes of x, and how to arrange another value so."""

    kind: str  # "whole", "by channel", "number"
    value: Array
    arrange: Callable[[Array], Array]


def arrangements(value: Array, p: Probe) -> Iterator[Arranged]:
    """All ways to read an array as one of the shape of x, of the channels, or as a number."""
    shape = tuple(n for n in value.shape if n != 1)
    if value.size == 1 or (value.ndim == 1 and value[0] % 1 == 0 and (value == value[0]).all()):
        yield Arranged("number", value.ravel()[0], lambda v: np.broadcast_to(v, value.shape))
    elif shape == (p.channels,):
        yield Arranged("by channel", value.ravel(), lambda v: v.reshape(value.shape))
    elif value.size == p.x.size:
        for order in permutations(range(p.x.ndim)):
            permuted = tuple(p.x.shape[a] for a in order)
            if sorted(order, key=lambda a: p.x.shape[a] == 1) != list(order) and 1 in permuted:
                continue  # axes of length 1 come last: their place does not matter
            if _merges(tuple(n for n in permuted if n != 1), shape):
                back = np.argsort(order)
                yield Arranged(
                    "whole",
                    value.reshape(permuted).transpose(back),
                    lambda v, order=order: v.transpose(order).reshape(value.shape),  # type: ignore[misc]
                )


def _merges(fine: tuple[int, ...], coarse: tuple[int, ...]) -> bool:
    """Whether a shape results from another by joining neighbouring axes."""
    rest = list(fine)
    for size in coarse:
        joined: list[int] = []
        while rest and prod(joined) < size:
            joined.append(rest.pop(0))
        if prod(joined) != size:
            return False
    return not rest
