"""The formula of a gradient, read from its numbers.

dx is linear in dy. Its Jacobian is fitted, channel by channel, to the terms dy, sum(dy), xhat sum(dy xhat) and others;
the factor of each term is then read as a product of powers of gamma, rstd and N (`powers`). It does not matter in which
language the code is written, nor how many mistakes it has.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from xhat.lens.checker import reference
from xhat.lens.checker.adapter import Unjudged
from xhat.lens.checker.powers import Factor, Scales, fit, scales_of
from xhat.lens.checker.probes import Array, Probe
from xhat.lens.checker.runner import Runner
from xhat.lens.checker.values import by_channel
from xhat.lens.checker.verdict import FormulaRead

__all__ = ["LEGEND", "UNKNOWN", "formulas"]

LEGEND = "In formulas r is 1/√(σ² + ε) and x̂ is (x - μ) r; brackets mark what differs."
UNKNOWN = "A [?] is a number for each channel that is no product of powers of γ, r and the count."
# Errors of a Jacobian relative to its largest element, in float64 and in float32
_NEAR, _NEAR_FLOAT32 = 1e-7, 2e-3


class Term(NamedTuple):
    """A term of a linear map: its symbol, and its factor (None: some other number for each channel)."""

    symbol: str
    factor: Factor | None


@dataclass
class _Read:
    """A Jacobian for each channel of each batch, with x̂ of that channel; and why it can't be read, if so."""

    rows: list[tuple[Array, Array]]
    problem: str | None = None


def formulas(
    runner: Runner, batch: tuple[Probe, ...], correction: int, wrong: set[str], tolerance: float
) -> tuple[FormulaRead, ...]:
    """The formulas of the wrong ones among y, dx, dgamma and dbeta, each beside the exact one."""
    batch = _more(runner, batch)
    forwards = [reference.forward(p, correction) for p in batch]
    scales = scales_of(list(zip(batch, forwards, strict=True)), correction)
    near = _NEAR if tolerance < _NEAR else _NEAR_FLOAT32
    found = []
    try:
        if "y" in wrong:
            found.append(_forward(runner, batch, forwards, scales, correction, near))
        gradients = [o for o in ("dx", "dgamma", "dbeta") if o in wrong]
        runs = [_impulses(runner, p, correction) for p in batch] if gradients else []
        found += [_gradient(o, runs, batch, forwards, scales, correction, near) for o in gradients]
    except (Unjudged, KeyError, ValueError, FloatingPointError):
        return tuple(found)
    return tuple(found)


def _more(runner: Runner, batch: tuple[Probe, ...]) -> tuple[Probe, ...]:
    """A third batch of another length, so that N and N - 1 are told apart."""
    p = batch[0]
    if p.layout.name == "NC, square" or runner.spec.kind == "jax":  # where every shape is compiled anew
        return batch
    axis, rng = p.axes("batch")[0], np.random.default_rng(7)
    shape = list(p.x.shape)
    shape[axis] = max(2, shape[axis] // 2)
    sample = np.take(p.x, range(shape[axis]), axis=axis)
    more = {
        "x": np.concatenate(
            [p.x, 1.5 * sample[::1] + rng.normal(size=shape) * np.abs(sample).mean()], axis=axis
        ),
        "dy": np.concatenate([p.dy, rng.normal(size=shape)], axis=axis),
    }
    return (*batch, replace(p, **{n: v.astype(np.float32).astype(float) for n, v in more.items()}))


# ------------------------------------------------------------------------------------------- Jacobians


def _impulses(runner: Runner, p: Probe, correction: int) -> dict[str, list[Array]]:
    """The outputs for dy = 0, for dy = 1 at one position of every channel, for any dy, and for dy in one channel."""
    axis = p.layout.axis
    shape = np.moveaxis(p.x, axis, 0).shape
    rng = np.random.default_rng(3)
    alone = np.zeros(shape)
    alone[0] = rng.normal(size=shape[1:])
    every = [np.zeros(shape), *_positions(shape), rng.normal(size=shape), alone]
    found: dict[str, list[Array]] = {}
    for dy in every:
        outputs = runner.run(replace(p, dy=np.moveaxis(dy, 0, axis)), correction).outputs
        for name, value in outputs.items():
            full = p.x.shape if name in ("dx", "y") else (p.channels,)
            found.setdefault(name, []).append(by_channel(value.reshape(full), p))
    return found


def _positions(shape: tuple[int, ...]) -> Iterator[Array]:
    for j in range(int(np.prod(shape[1:]))):
        dy = np.zeros((shape[0], int(np.prod(shape[1:]))))
        dy[:, j] = 1
        yield dy.reshape(shape)


def _jacobian(
    output: str,
    runs: list[dict[str, list[Array]]],
    forwards: list[reference.Forward],
    batch: tuple[Probe, ...],
    near: float,
) -> _Read:
    read = _Read([])
    for run, f, p in zip(runs, forwards, batch, strict=True):
        zero, *columns, drawn, alone = (v if output == "dx" else v[:, :1] for v in run[output])
        jacobians = np.stack(
            [c - zero for c in columns], axis=-1
        )  # (channel, position of dx, position of dy)
        size = np.abs(jacobians).max()
        axis = p.layout.axis
        dy = np.random.default_rng(3)
        shape = np.moveaxis(p.x, axis, 0).shape
        dy.normal(size=shape[1:])
        values = dy.normal(size=shape).reshape(p.channels, -1)
        others = np.abs(np.delete(alone - zero, 0, axis=0)).max(initial=0)
        if others > near * size:
            read.problem = (
                "a channel depends on the dy of other channels: a sum over a wrong axis, or a reshape"
            )
        elif np.abs(np.einsum("cij,cj->ci", jacobians, values) - (drawn - zero)).max() > near * size:
            read.problem = "it is not linear in dy"
        elif np.abs(zero).max() > near * size:
            read.problem = "it is not 0 for dy = 0"
        read.rows += list(zip(jacobians, by_channel(f.xhat, p), strict=True))
        if read.problem:
            break
    return read


_ONE_SUM = {"dgamma": "Σ dy x̂", "dbeta": "Σ dy"}


def _basis(output: str, xhat: Array) -> dict[str, Array]:
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
    forwards: list[reference.Forward],
    scales: Scales,
    correction: int,
    near: float,
) -> FormulaRead:
    exact = exact_terms(output, correction, scales.letter)
    read = _jacobian(output, runs, forwards, batch, near)
    if read.problem is None:
        size = max(float(np.abs(j).max()) for j, _ in read.rows)
        solved = [_solve(j, _basis(output, h)) for j, h in read.rows]
        if max(rest for _, rest in solved) <= near * size:
            coefficients = {n: np.array([c[n] for c, _ in solved]) for n in solved[0][0]}
            mean = np.concatenate([f.mu.ravel() for f in forwards])
            return _compared(output, _terms(coefficients, scales, mean, True, near), exact)
        read.problem = "no sum of terms in dy, Σ dy and Σ(dy x̂)" + _weights(
            output, read.rows, scales, correction
        )
    _, shown, _ = _marked(exact, exact)
    return FormulaRead(output, read.problem, f"{output} = {shown}", ())


def _solve(jacobian: Array, basis: dict[str, Array]) -> tuple[dict[str, float], float]:
    matrix = np.array([v.ravel() for v in basis.values()]).T
    found = np.linalg.lstsq(matrix, jacobian.ravel(), rcond=1e-10)[0]
    return dict(zip(basis, found, strict=True)), float(np.abs(matrix @ found - jacobian.ravel()).max())


def _weights(output: str, rows: list[tuple[Array, Array]], scales: Scales, correction: int) -> str:
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


# -------------------------------------------------------------------------------------------- forward


def _forward(
    runner: Runner,
    batch: tuple[Probe, ...],
    forwards: list[reference.Forward],
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
                found, error = _solve(row, {"(x - μ)": centred, "1": np.ones(len(centred))})
                parts[name].append(found)
                rest = max(rest, error)
    exact = exact_terms("y", correction, scales.letter)
    if rest > near * max(float(np.abs(f.y).max()) for f in forwards):
        _, shown, _ = _marked(exact, exact)
        return FormulaRead(
            "y", "no affine map of x by channel: channels are mixed, or another step", f"y = {shown}", ()
        )
    mean = np.concatenate([f.mu.ravel() for f in forwards])
    terms = []
    for name, rows in parts.items():
        columns = {n: np.array([r[n] for r in rows]) for n in rows[0]}
        if max(float(np.abs(v).max()) for v in columns.values()) > 10 * near:
            for term in _terms(columns, scales, mean, False, near):
                gamma = Factor(1.0, tuple((letter, 1.0) for letter in name.split()))
                terms.append(Term(term.symbol, term.factor * gamma if term.factor else None))
    return _compared("y", terms, exact)


def _y(runner: Runner, p: Probe, correction: int) -> Array:
    return by_channel(runner.run(p, correction).outputs["y"], p)


# ----------------------------------------------------------------------------------------------- text


def exact_terms(output: str, correction: int, letter: str) -> list[Term]:
    """The terms of the exact formula."""
    gamma_r = Factor(1.0, (("γ", 1.0), ("r", 1.0)))
    divisor = f"({letter} - 1)" if correction else letter
    return {
        "y": [Term("(x - μ)", gamma_r), Term("1", Factor(1.0, (("β", 1.0),)))],
        "dx": [
            Term("dy", gamma_r),
            Term("Σ dy", gamma_r * Factor(-1.0, ((letter, -1.0),))),
            Term("x̂ Σ(dy x̂)", gamma_r * Factor(-1.0, ((divisor, -1.0),))),
        ],
        "dgamma": [Term("Σ dy x̂", Factor())],
        "dbeta": [Term("Σ dy", Factor())],
    }[output]


def _compared(output: str, yours: list[Term], exact: list[Term]) -> FormulaRead:
    left, right, differs = _marked(yours, exact)
    return FormulaRead(output, f"{output} = {left or '0'}", f"{output} = {right}", tuple(differs))


def _marked(yours: list[Term], exact: list[Term]) -> tuple[str, str, list[str]]:
    """Both sums, with brackets around what differs, and what differs in words."""
    ours, theirs = {t.symbol: t.factor for t in yours}, {t.symbol: t.factor for t in exact}
    left, right, differs = [], [], []
    order = [*theirs, *(s for s in ours if s not in theirs)]
    for symbol in order:
        mine, true = ours.get(symbol), theirs.get(symbol)
        if symbol in ours:
            left.append(_shown(symbol, mine, true, symbol in theirs))
        if symbol in theirs:
            right.append(_shown(symbol, true, mine, symbol in ours))
        name = symbol if symbol != "1" else "the constant"
        elsewhere = symbol.replace("x̂", "(x - μ)")  # the same term, with a root of its own
        if symbol not in ours and elsewhere in ours and elsewhere != symbol:
            differs.append(f"{name} has a root of its own")
        elif symbol not in theirs and symbol.replace("(x - μ)", "x̂") in theirs and symbol.count("μ"):
            continue
        elif symbol not in ours:
            differs.append(f"{name} is missing")
        elif symbol not in theirs:
            differs.append(f"{name} is not in the exact formula")
        elif mine is None:
            differs.append(f"{name} has another factor")
        elif true is not None and (ratio := mine * _inverse(true)) and str(ratio) != "1":
            differs.append(f"{name} has the factor {ratio}")
    return _joined(left), _joined(right), differs


def _inverse(factor: Factor) -> Factor:
    return Factor(1 / factor.number, tuple((n, -p) for n, p in factor.powers))


def _shown(symbol: str, factor: Factor | None, other: Factor | None, in_both: bool) -> str:
    """A signed term, with brackets around the factors that the other formula does not have."""
    if factor is None:
        return f"+ [?] {symbol}"
    top, below = factor.parts()
    other_top, other_below = other.parts() if other is not None and in_both else ([], [])
    if other is not None and in_both:
        top = [t if t in other_top else f"[{t}]" for t in top]
        below = [b if b in other_below else f"[{_bare(b)}]" for b in below]
    sign = "-" if factor.number < 0 else "+"
    if other is not None and in_both and (other.number < 0) != (factor.number < 0):
        sign = f"[{sign}]"
    words = " ".join([*top, *([symbol] if symbol != "1" or not top else [])])
    text = words + (f"/{below[0]}" if len(below) == 1 else f"/({' '.join(below)})" if below else "")
    return f"{sign} {text}" if in_both else f"{sign} [{text}]"


def _bare(text: str) -> str:
    return text[1:-1] if text[0] + text[-1] == "()" else text


def _joined(terms: list[str]) -> str:
    text = " ".join(terms)
    return text.removeprefix("+ ") if text.startswith("+ ") else text
