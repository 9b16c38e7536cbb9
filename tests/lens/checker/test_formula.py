"""The formula of an output, read from its numbers, beside the formula that follows from the mistake by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.checker.corpus.wrong.planted import PLANTED

from benchmarks.checker.measure import agrees
from xhat.lens import check, check_file
from xhat.lens.checker.formulas.powers import Scales, fit

# Steps that JAX and PyTorch compute as NumPy does are in the benchmark.
READ = [p for p in PLANTED if p.formulas and p.program in ("closed", "three_terms") and p.outputs != "y"]
FORWARD = ("axes:eps_squared", "three_terms:gamma_times_beta")


def formulas_of(key: str, folder: Path) -> None:
    mistake = next(p for p in PLANTED if f"{p.program}:{p.key}" == key)
    path = folder / f"{mistake.key}.py"
    path.write_text(mistake.source(), encoding="utf-8")
    read = {f.output: f.yours for f in check_file(path, layout=mistake.layout)[0].formulas}
    for output, expected in mistake.formulas.items():
        assert agrees(read[output], expected), (read[output], expected)


@pytest.mark.parametrize("key", [f"{p.program}:{p.key}" for p in READ] + list(FORWARD))
def test_the_formula_of_a_planted_mistake_is_read(key: str, tmp_path: Path) -> None:
    formulas_of(key, tmp_path)


def forward(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
    rstd = 1 / np.sqrt(x.var(0) + eps)
    xhat = (x - x.mean(0)) * rstd
    return gamma * xhat + beta, (xhat, gamma, rstd)


def test_differing_factors_are_marked_in_both_formulas() -> None:
    def backward(dy: Any, cache: Any) -> Any:
        xhat, gamma, rstd = cache
        n = len(dy)
        dx = gamma * rstd * (dy + dy.sum(0) / n - xhat * (dy * xhat).sum(0) / (n - 1))
        return dx, (dy * xhat).sum(0), dy.sum(0)

    (formula,) = check(forward, backward, layout="NC").formulas
    assert formula.yours == "dx = γ r dy [+] γ r Σ dy/N - γ r x̂ Σ(dy x̂)/[N - 1]"
    assert formula.exact == "dx = γ r dy [-] γ r Σ dy/N - γ r x̂ Σ(dy x̂)/[N]"
    assert formula.differs == ("Σ dy has the factor -1", "x̂ Σ(dy x̂) has the factor N/(N - 1)")


def test_a_gradient_that_is_not_linear_in_dy_is_said() -> None:
    def backward(dy: Any, cache: Any) -> Any:
        xhat, gamma, rstd = cache
        return gamma * rstd * np.maximum(dy, 0), (dy * xhat).sum(0), dy.sum(0)

    (formula,) = check(forward, backward, layout="NC").formulas
    assert formula.yours == "it is not linear in dy"
    assert formula.exact == "dx = γ r dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"


def test_a_term_that_no_power_explains_is_no_guess() -> None:
    def backward(dy: Any, cache: Any) -> Any:
        xhat, gamma, rstd = cache
        dx = gamma * rstd * (dy - dy.mean(0) - xhat * (dy * xhat).mean(0))
        return dx + np.sin(gamma) * dy, (dy * xhat).sum(0), dy.sum(0)

    verdict = check(forward, backward, layout="NC")
    assert verdict.formulas[0].yours == "dx = [?] dy - γ r Σ dy/N - γ r x̂ Σ(dy x̂)/N"
    assert any(note.startswith("A [?] is a number") for note in verdict.notes)


@pytest.mark.parametrize("seed", range(20))
def test_a_product_of_powers_is_read_exactly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 14
    m = rng.choice([4.0, 6.0, 7.0], n)
    gamma, var = rng.uniform(0.5, 2, n) * rng.choice([-1, 1], n), rng.uniform(0.4, 3, n)
    ones = np.ones(n)
    scales = Scales(gamma, rng.normal(size=n), var, var, m, m, 3 * ones, 0.4, 0)
    p, q, (s, t) = rng.integers(0, 3), rng.integers(-3, 4), [(0, 0), (-1, 0), (0, -1), (1, -1)][seed % 4]
    number = float(rng.choice([1, 2, 0.5, -1, -2]))
    values = number * gamma**p * scales.roots["r"] ** q * m**s * (m - 1) ** t
    found = fit(values, scales)
    assert found is not None and found.number == pytest.approx(number)
    powers = {"γ": p, "r": q, "N": s, "(N - 1)": t}
    assert dict(found.powers) == {name: power for name, power in powers.items() if power}
    assert fit(values * rng.uniform(1, 1.01, n), scales) is None


def test_brackets_do_not_cut_through_parentheses() -> None:
    def forward(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return gamma * (x - x.mean(0)) / np.sqrt(x.std(0) + eps) + beta

    (read,) = check(forward).formulas
    open_ones: list[str] = []
    for mark in (c for c in read.yours if c in "()[]"):
        if mark in "([":
            open_ones.append(mark)
        else:
            assert open_ones.pop() + mark in ("()", "[]"), read.yours
    assert not open_ones
