"""The formula of a gradient, read from its numbers.

dx is linear in dy. Its Jacobian is fitted, channel by channel, to the terms dy, sum(dy), xhat sum(dy xhat) and others;
the factor of each term is then read as a product of powers of gamma, rstd and N (`powers`). It does not matter in which
language the code is written, nor how many mistakes it has.
"""

from dataclasses import replace

import numpy as np

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import Forward
from xhat.lens.checker.formulas.jacobian import basis, impulses, jacobians, longer, solve, weights
from xhat.lens.checker.formulas.powers import Factor, Scales, fit, scales_of
from xhat.lens.checker.formulas.terms import Term, compared, exact_terms, unread
from xhat.lens.checker.lines.values import by_channel
from xhat.lens.checker.verdict import FormulaRead

__all__ = ["formulas"]

# Errors of a Jacobian relative to its largest element, in float64 and in float32
_NEAR, _NEAR_FLOAT32 = 1e-7, 2e-3


def formulas(
    runner: Runner, batch: tuple[Probe, ...], correction: int, wrong: set[str], tolerance: float
) -> tuple[FormulaRead, ...]:
    """The formulas of the wrong ones among y, dx, dgamma and dbeta, each beside the exact one."""
    batch = longer(runner, batch)
    forwards = [reference.forward(p, correction) for p in batch]
    scales = scales_of(list(zip(batch, forwards, strict=True)), correction)
    near = _NEAR if tolerance < _NEAR else _NEAR_FLOAT32
    found = []
    try:
        if "y" in wrong:
            found.append(_forward(runner, batch, forwards, scales, correction, near))
        gradients = [o for o in ("dx", "dgamma", "dbeta") if o in wrong]
        runs = [impulses(runner, p, correction) for p in batch] if gradients else []
        found += [_gradient(o, runs, batch, forwards, scales, correction, near) for o in gradients]
    except (Unjudged, KeyError, ValueError, FloatingPointError):
        return tuple(found)
    return tuple(found)


# A term in x is one in x̂ and one without it: x = x̂/r + μ.
_IN_X = {
    "Σ(dy x̂)": ("Σ dy", "Σ(dy x)"),
    "x̂ Σ(dy x̂)": ("x̂ Σ dy", "x̂ Σ(dy x)"),
    "Σ dy x̂": ("Σ dy", "Σ dy x"),
    "x̂ Σ dy": ("Σ dy", "x Σ dy"),
    "x̂ dy": ("dy", "x dy"),
    "(x - μ)": ("1", "x"),
}


def _terms(
    coefficients: dict[str, Array], scales: Scales, mean: Array, in_xhat: bool, near: float
) -> list[Term]:
    size = max(float(np.abs(v).max()) for v in coefficients.values())
    present = {n: v for n, v in coefficients.items() if np.abs(v).max() > near * size}
    found = {n: fit(v, scales, near) for n, v in present.items()}
    for name, (without, in_x) in _IN_X.items():
        factor = found.get(name)
        if factor is None or found.get(without) is not None or without not in present:
            continue
        scale = scales.roots["r"] if in_xhat else np.ones_like(mean)
        rest = present[without] - present[name] * scale * mean
        is_zero = np.abs(rest).max() <= near * size
        if is_zero or fit(rest, scales, near) is not None:
            found.pop(name)
            found[in_x] = factor * (Factor(1.0, (("r", 1.0),)) if in_xhat else Factor())
            found.pop(without)
            if not is_zero:
                found[without] = fit(rest, scales, near)
    r = scales.roots["r"]
    for name in [n for n, f in found.items() if f is None]:
        # an eps of its own: in x - mu, since this x̂ is not ours
        power = name.count("x̂") if "²" not in name else 0
        factor = fit(present[name] * r**power, scales, near, another_eps=True)
        if factor is not None:
            found[name.replace("x̂", "(x - μ)") if power else name] = factor
            found.pop(name) if power else None
    return [_without_xhat(Term(n, f)) for n, f in found.items()]


def _without_xhat(term: Term) -> Term:
    """A term with another root than r, in x - mu: its own xhat is not ours."""
    own = term.factor is not None and any(n not in "N m γ r (N - 1) (m - 1) C" for n, _ in term.factor.powers)
    if term.factor is None or "x̂" not in term.symbol or "²" in term.symbol:
        return term
    if not own:
        divided = dict(term.factor.powers).get("r", 0.0) in (-1.0, -2.0)  # x̂/r is x - mu
        r = Factor(1.0, (("r", 1.0),))
        return Term(term.symbol.replace("x̂", "(x - μ)", 1), term.factor * r) if divided else term
    r = Factor(1.0, (("r", float(term.symbol.count("x̂"))),))
    return Term(term.symbol.replace("x̂", "(x - μ)"), term.factor * r)


def _gradient(
    output: str,
    runs: list[dict[str, list[Array]]],
    batch: tuple[Probe, ...],
    forwards: list[Forward],
    scales: Scales,
    correction: int,
    near: float,
) -> FormulaRead:
    exact = exact_terms(output, correction, scales.letter)
    read = jacobians(output, runs, forwards, batch, near)
    if read.problem is None:
        size = max(float(np.abs(j).max()) for j, _ in read.rows)
        solved = [solve(j, basis(output, h)) for j, h in read.rows]
        if max(rest for _, rest in solved) <= near * size:
            coefficients = {n: np.array([c[n] for c, _ in solved]) for n in solved[0][0]}
            mean = np.concatenate([f.mu.ravel() for f in forwards])
            return compared(output, _terms(coefficients, scales, mean, True, near), exact)
        read.problem = "no sum of terms in dy, Σ dy and Σ(dy x̂)" + weights(
            output, read.rows, scales, correction
        )
    return unread(output, read.problem, exact)


def _forward(
    runner: Runner,
    batch: tuple[Probe, ...],
    forwards: list[Forward],
    scales: Scales,
    correction: int,
    near: float,
) -> FormulaRead:
    """y = gamma (x - mu) r + beta: the parts with gamma, with beta and with neither, each fitted to x - mu and 1."""
    alone = replace(runner, backward=None)
    parts: dict[str, list[dict[str, float]]] = {"γ": [], "β": [], "": [], "γ β": []}
    rest = 0.0
    for p, f in zip(batch, forwards, strict=True):
        zero = np.zeros_like(p.gamma)
        plain = _y(alone, replace(p, gamma=zero, beta=zero), correction)
        with_gamma = (_y(alone, replace(p, beta=zero), correction) - plain) / by_channel(p.gamma, p)
        with_beta = (_y(alone, replace(p, gamma=zero), correction) - plain) / by_channel(p.beta, p)
        with_both = _y(alone, p, correction) - plain
        with_both -= with_gamma * by_channel(p.gamma, p) + with_beta * by_channel(p.beta, p)
        with_both /= by_channel(p.gamma * p.beta, p)
        for name, values in zip(parts, (with_gamma, with_beta, plain, with_both), strict=True):
            for row, centred in zip(values, by_channel(p.x - f.mu, p), strict=True):
                found, error = solve(row, {"(x - μ)": centred, "1": np.ones(len(centred))})
                parts[name].append(found)
                rest = max(rest, error)
    exact = exact_terms("y", correction, scales.letter)
    if rest > near * max(float(np.abs(f.y).max()) for f in forwards):
        return unread("y", "no affine map of x by channel: channels are mixed, or another step", exact)
    mean = np.concatenate([f.mu.ravel() for f in forwards])
    terms = []
    for name, rows in parts.items():
        columns = {n: np.array([r[n] for r in rows]) for n in rows[0]}
        if max(float(np.abs(v).max()) for v in columns.values()) > 10 * near:
            for term in _terms(columns, scales, mean, False, near):
                gamma = Factor(1.0, tuple((letter, 1.0) for letter in name.split()))
                terms.append(Term(term.symbol, term.factor * gamma if term.factor else None))
    return compared("y", terms, exact)


def _y(runner: Runner, p: Probe, correction: int) -> Array:
    return by_channel(runner.run(p, correction).outputs["y"], p)
