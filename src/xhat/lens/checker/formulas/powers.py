"""Factors read from numbers: K gamma^p r^q m^s (m - 1)^t, fitted to one value for each channel of several batches.

Nothing here depends on what the factors belong to. r is (var + eps)^(-1/2); a factor may have another root instead.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import product

import numpy as np

from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import Forward

__all__ = ["ONE", "Factor", "Scales", "fit", "scales_of"]

# Exponents of m and m - 1, the usual ones first: two batches alone can't separate them, and the first that fits counts.
_COUNTS = (
    *((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-2.0, 0.0)),
    *((2.0, 0.0), (-1.0, -1.0), (0.0, -2.0), (-0.5, 0.0), (0.5, 0.0), (-2.0, 1.0), (2.0, -1.0)),
)
_POWER = str.maketrans("0123456789.-", "⁰¹²³⁴⁵⁶⁷⁸⁹·⁻")
_ORDER = "N m (N - 1) (m - 1) C γ β r"  # of the factors of a product; roots come last
_NEAR = 1e-6


@dataclass(frozen=True)
class Scales:
    """What a factor is made of, with one value for each channel of each batch."""

    gamma: Array
    mu: Array
    var: Array
    running_var: Array
    m: Array
    batch: Array
    channels: Array
    eps: float
    correction: int
    letter: str = "N"

    @cached_property
    def roots(self) -> dict[str, Array]:
        """r, and what code has in the place of 1/r: without eps, with eps outside, with another variance."""
        deviation, n = np.sqrt(self.var), self.letter
        total = self.var * (self.m - self.correction)
        here, other = (n, f"({n} - 1)")[:: -1 if self.correction else 1]
        return {
            "r": (self.var + self.eps) ** -0.5,
            "σ": deviation,
            "(σ + ε)": deviation + self.eps,
            f"√({here} σ²/{other} + ε)": (total / (self.m - (1 - self.correction)) + self.eps) ** 0.5,
            f"√({here} σ² + ε)": (total + self.eps) ** 0.5,
            f"√(Σ x²/{n} + ε)": (self.var + self.mu**2 + self.eps) ** 0.5,
            "√(running σ² + ε)": (self.running_var + self.eps) ** 0.5,
            "√(running σ²)": self.running_var**0.5,
        } | self._other_counts

    @property
    def _other_counts(self) -> dict[str, Array]:
        """Counts that are taken for m: the channels, and beside positions the samples."""
        return {"C": self.channels} | ({"N": self.batch} if self.letter == "m" else {})

    @property
    def choices(self) -> list[tuple[str, ...]]:
        """The roots that one factor may have: r alone, another alone, or both."""
        others = [name for name in self.roots if name != "r"]
        return [("r",), *((name,) for name in others), *(("r", name) for name in others)]

    @cached_property
    def counts(self) -> Array:
        """The logarithm of m^s (m - 1)^t for every pair of exponents, one column for each."""
        s, t = np.array(_COUNTS).T
        return np.outer(np.log(self.m), s) + np.outer(np.log(np.maximum(self.m - 1, 1)), t)

    @cached_property
    def systems(self) -> dict[tuple[str, ...], tuple[Array, Array]]:
        """For each choice of roots the logarithms of 1, gamma and the roots, one column for each, and their inverse."""
        ones, gamma = np.ones(len(self.m)), np.log(np.abs(self.gamma))
        with np.errstate(all="ignore"):
            found = {c: np.array([ones, gamma, *(np.log(self.roots[r]) for r in c)]).T for c in self.choices}
        return {c: (a, np.linalg.pinv(a, rcond=1e-9)) for c, a in found.items() if np.isfinite(a).all()}


@dataclass(frozen=True)
class Factor:
    """A factor as a product of powers: `number` times each symbol to its exponent."""

    number: float = 1.0
    powers: tuple[tuple[str, float], ...] = ()

    def __mul__(self, other: "Factor") -> "Factor":
        powers = dict(self.powers)
        for name, power in other.powers:
            powers[name] = powers.get(name, 0.0) + power
        return Factor(self.number * other.number, tuple((n, p) for n, p in powers.items() if p))

    def parts(self) -> tuple[list[str], list[str]]:
        """The factors above and below the line, without the sign."""
        number = Fraction(abs(self.number)).limit_denominator(12)
        near = abs(float(number) - abs(self.number)) < 1e-4 * abs(self.number)
        top = [str(number.numerator)] if near and number.numerator != 1 else []
        below = [str(number.denominator)] if near and number.denominator != 1 else []
        top += [] if near else [f"{abs(self.number):.4g}"]
        for name, power in sorted(self.powers, key=lambda item: _ORDER.find(item[0]) % 99):
            # r is 1 / sqrt(...), and a negative power of it is written as it is
            above = power > 0 or name in ("r", "γ")
            (top if above else below).append(_raised(name, power if above else -power))
        return top, below

    def __str__(self) -> str:
        top, below = self.parts()
        text = " ".join(top) or "1"
        return ("-" if self.number < 0 else "") + text + "".join(f"/{part}" for part in below)


ONE = Factor()


def _raised(name: str, power: float) -> str:
    if power == 1:
        return name
    shown = f"{power:g}"
    return name + (f"^({shown})" if "." in shown else shown.translate(_POWER))


def scales_of(batch: list[tuple[Probe, Forward]], correction: int) -> Scales:
    """The scales of every channel of these batches, one batch after the other."""

    def flat(values: list[Array]) -> Array:
        rows = [np.broadcast_to(v.ravel(), p.channels) for v, (p, _) in zip(values, batch, strict=True)]
        return np.concatenate(rows)

    gamma, running_var = (flat([getattr(p, n) for p, _ in batch]) for n in ("gamma", "running_var"))
    mu, var = flat([f.mu for _, f in batch]), flat([f.var for _, f in batch])
    m, n = (flat([np.asarray(float(p.count(over))) for p, _ in batch]) for over in ("all", "batch"))
    channels = flat([np.asarray(float(p.channels)) for p, _ in batch])
    letter = "m" if batch[0][0].x.ndim > 2 else "N"
    return Scales(gamma, mu, var, running_var, m, n, channels, batch[0][0].eps, correction, letter)


def fit(values: Array, scales: Scales, near: float = _NEAR, another_eps: bool = False) -> Factor | None:
    """The simplest product that gives these values, or None; `another_eps`: its root may have an eps of its own."""
    if not np.isfinite(values).all() or not np.abs(values).min() > 0:
        return None
    logarithms = np.log(np.abs(values))[:, None] - scales.counts
    for roots, (matrix, inverse) in scales.systems.items():
        # the exponents of gamma and of the roots, for all exponents of the counts at once
        exponents = np.round((inverse @ logarithms)[1:] * 2) / 2
        rest = logarithms - matrix[:, 1:] @ exponents
        fits = np.abs(rest - rest.mean(axis=0)).max(axis=0) <= near
        fits &= np.abs(exponents).max(axis=0) <= 4
        if len(roots) > 1:
            fits &= exponents[1:].all(axis=0)
        for k in np.flatnonzero(fits):
            factor = _factor(
                values, scales, roots, int(k), exponents[:, k], float(np.exp(rest[:, k].mean())), near
            )
            if factor is not None:
                return factor
    return _with_another_eps(values, scales, near) if another_eps else None


def _with_another_eps(values: Array, scales: Scales, near: float) -> Factor | None:
    """gamma^p m^s (m - 1)^t (var + e)^(-q/2) with an unknown e: the one that is the same in every channel."""
    for q, p, k in product((1, 2, 3), (0, 1), range(len(_COUNTS))):
        rest = np.abs(values) / np.exp(scales.counts[:, k]) / np.abs(scales.gamma) ** p
        for number in (1.0, 2.0, 0.5):
            eps = (rest / number) ** (-2 / q) - scales.var
            found = float(eps.mean())
            close = np.abs(eps - found).max() <= 0.1 * near * (scales.var + abs(found)).min()
            signs = np.sign(values) * (np.sign(scales.gamma) if p else 1)
            if not close or found < 0 or (signs != signs[0]).any():
                continue
            names = ("γ", scales.letter, f"({scales.letter} - 1)", f"√(σ² + {found:.3g})")
            powers = zip(names, (p, *_COUNTS[k], -q), strict=True)
            return Factor(float(signs[0]) * number, tuple((n, float(power)) for n, power in powers if power))
    return None


def _factor(
    values: Array,
    scales: Scales,
    roots: tuple[str, ...],
    k: int,
    exponents: Array,
    number: float,
    near: float,
) -> Factor | None:
    """The product with these exponents, if its number and its signs are plain."""
    plain = _is_plain(number, near)
    if k and not plain:
        return None
    pattern = np.sign(values) * (np.sign(scales.gamma) if exponents[0] % 2 == 1 else 1)
    if (pattern != pattern[0]).any():
        return None
    names = ("γ", *roots, scales.letter, f"({scales.letter} - 1)")
    powers = zip(names, (*exponents.tolist(), *_COUNTS[k]), strict=True)
    number = round(number * 60) / 60 if plain else number
    return Factor(float(pattern[0] * number), tuple((n, float(p)) for n, p in powers if p))


def _is_plain(number: float, near: float) -> bool:
    fraction = Fraction(number).limit_denominator(6)
    return fraction.numerator in range(1, 9) and abs(float(fraction) - number) < 10 * near * number
