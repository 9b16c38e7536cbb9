"""A formula as a sum of terms, each with its factor, beside the exact one; what differs is marked.

Nothing is computed here. The letters are those of the derivation, and r is (var + eps)^(-1/2).
"""

from typing import NamedTuple

from xhat.lens.checker.formulas.powers import Factor
from xhat.lens.checker.verdict import FormulaRead

__all__ = ["LEGEND", "UNKNOWN", "Term", "compared", "exact_terms", "unread"]

LEGEND = "In formulas r is 1/√(σ² + ε) and x̂ is (x - μ) r; brackets mark what differs."
UNKNOWN = "A [?] is a number for each channel that is no product of powers of γ, r and the count."


class Term(NamedTuple):
    """A term of a linear map: its symbol, and its factor (None: some other number for each channel)."""

    symbol: str
    factor: Factor | None


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


def unread(output: str, problem: str, exact: list[Term]) -> FormulaRead:
    """The exact formula, and why the other one can't be read."""
    return FormulaRead(output, problem, f"{output} = {_marked(exact, exact)[1]}", ())


def compared(output: str, yours: list[Term], exact: list[Term]) -> FormulaRead:
    """Both formulas, and what differs."""
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
        text = _difference(symbol, ours, theirs)
        differs += [text] if text else []
    return _joined(left), _joined(right), differs


def _difference(symbol: str, ours: dict[str, Factor | None], theirs: dict[str, Factor | None]) -> str | None:
    """What differs in one term, in words."""
    name = symbol if symbol != "1" else "the constant"
    in_x, in_xhat = symbol.replace("x̂", "(x - μ)"), symbol.replace("(x - μ)", "x̂")
    if symbol not in ours:
        own_root = in_x != symbol and in_x in ours  # the same term, with a root of its own
        return f"{name} has a root of its own" if own_root else f"{name} is missing"
    if symbol not in theirs:
        return None if in_xhat != symbol and in_xhat in theirs else f"{name} is not in the exact formula"
    mine, true = ours[symbol], theirs[symbol]
    if mine is None or true is None:
        return f"{name} has another factor"
    ratio = str(mine * _inverse(true))
    return f"{name} has the factor {ratio}" if ratio != "1" else None


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
    """Without the parentheses around all of it: not those of (a)^(b)."""
    return text[1:-1] if text[0] == "(" and text.find(")") == len(text) - 1 else text


def _joined(terms: list[str]) -> str:
    text = " ".join(terms)
    return text.removeprefix("+ ") if text.startswith("+ ") else text
