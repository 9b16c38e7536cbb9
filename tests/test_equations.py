"""The equations over exact fractions and over arrays, against the definition."""

import ast
import inspect
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS

from xhat import equations

Array = np.ndarray[Any, np.dtype[Any]]

VALUES = [Fraction(v) for v in ("3", "-7/2", "11/5", "1000001/3", "-2", "0", "13/7")]
WEIGHTS = [Fraction(v) for v in ("1", "0", "5/2", "1/3", "3", "1", "2/7")]


def total(values: Any) -> Any:
    """The sum over the batch."""
    return sum(values) if isinstance(values, Iterable) else values


def objects(values: list[Fraction]) -> Array:
    """An array whose arithmetic is that of fractions."""
    return np.array(values, dtype=object)


def test_moments_are_exact_over_fractions() -> None:
    x, w = objects(VALUES), objects(WEIGHTS)
    mu, m2 = equations.moments(x, total, len(VALUES))
    assert (len(VALUES), mu, m2) == oracle.exact_moments(VALUES)
    mu, m2 = equations.moments(x, total, sum(WEIGHTS), w)
    assert (sum(WEIGHTS), mu, m2) == oracle.exact_moments(VALUES, WEIGHTS)


@pytest.mark.parametrize("cut", range(1, len(VALUES)))
def test_merge_of_two_parts_is_exactly_the_whole(cut: int) -> None:
    parts = [oracle.exact_moments(VALUES[:cut]), oracle.exact_moments(VALUES[cut:])]
    assert equations.merge(*parts[0], *parts[1]) == oracle.exact_moments(VALUES)


def test_merge_does_not_depend_on_the_order() -> None:
    a, b, c = (oracle.exact_moments(VALUES[i : i + 3]) for i in (0, 2, 4))
    ab_c = equations.merge(*equations.merge(*a, *b), *c)
    assert (
        ab_c == equations.merge(*a, *equations.merge(*b, *c)) == equations.merge(*c, *equations.merge(*b, *a))
    )


@pytest.mark.parametrize("correction", [0, 1])
def test_variance_divides_by_m_less_the_correction(correction: int) -> None:
    assert equations.variance(Fraction(10), Fraction(5), correction) == Fraction(10, 5 - correction)


def test_reciprocal_std_adds_eps_before_the_root() -> None:
    assert equations.reciprocal_std(9.0, 7.0, np.sqrt) == 0.25


def test_normalize_is_standardize_scaled_and_shifted() -> None:
    x, mu, rstd, gamma, beta = (Fraction(v) for v in ("7/3", "2/5", "9/2", "-3", "1/7"))
    xhat = equations.standardize(x, mu, rstd)
    assert xhat == (Fraction(7, 3) - Fraction(2, 5)) * Fraction(9, 2)
    assert equations.normalize(x, mu, rstd, gamma, beta) == gamma * xhat + beta
    assert equations.normalize(x, mu, rstd) == xhat


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_input_gradient_is_the_chain_rule(correction: int, weighted: bool) -> None:
    """Against the long way through var and mu; the sums are dbeta and dgamma, the paths sum to dx."""
    rng = np.random.default_rng(1)
    x, dy, gamma = (
        rng.normal(size=(3, 13, 1)).astype(oracle.WIDE)[0],
        rng.normal(size=(13, 1)),
        np.array([-1.7]),
    )
    w = rng.uniform(0, 2, size=(13, 1)) if weighted else np.ones((13, 1))
    f = oracle.forward(x, gamma, mask=w, correction=correction)
    expected = oracle.backward(dy, x, gamma, mask=w, correction=correction)
    xhat = equations.standardize(x, f.mean, f.rstd)
    sums = equations.gradient_sums(oracle.wide(dy), xhat, lambda a: a.sum(axis=0))
    terms = {"gamma": gamma, "rstd": f.rstd, "m": f.m, "correction": correction, "w": w}
    assert oracle.relative_l2(sums[0], expected.dbeta) < 1e-17 * 10
    assert oracle.relative_l2(sums[1], expected.dgamma) < 1e-17 * 10
    assert oracle.relative_l2(equations.input_gradient(dy, xhat, *sums, **terms), expected.dx) < 1e-15
    assert oracle.relative_l2(sum(equations.paths(dy, xhat, *sums, **terms)), expected.dx) < 1e-15


def test_the_paths_are_the_parts_that_their_names_say() -> None:
    dy, xhat = objects([Fraction(v) for v in (1, -2, 3)]), objects([Fraction(v) for v in (-1, 0, 1)])
    sum_dy, sum_dy_xhat = equations.gradient_sums(dy, xhat, total)
    assert (sum_dy, sum_dy_xhat) == (2, 2)
    terms = {"gamma": Fraction(3), "rstd": Fraction(1, 2), "m": Fraction(3), "correction": 1}
    paths = equations.paths(dy, xhat, sum_dy, sum_dy_xhat, **terms)
    assert list(paths.direct) == [Fraction(3, 2), -3, Fraction(9, 2)]
    assert paths.mean == -1
    assert list(paths.variance) == [Fraction(3, 2), 0, Fraction(-3, 2)]


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_activations_and_their_slopes(activation: Any) -> None:
    pre = np.array([-30.0, -2.5, -0.1, 0.1, 1.0, 30.0])
    name = "leaky_relu" if activation == "relu" else activation
    name, slope = (name, 0.0) if not isinstance(activation, tuple) else activation
    assert equations.activate(pre, name, slope, np) == pytest.approx(
        oracle.activate(pre, activation), rel=1e-15
    )
    expected = oracle.activation_slope(pre, activation)
    assert equations.activation_slope(pre, name, slope, np) == pytest.approx(expected, rel=1e-14)


def test_the_equations_know_no_array_library() -> None:
    """They take what they sum and take roots with, so that symbols go through as arrays do."""
    imported = [n for n in ast.walk(ast.parse(inspect.getsource(equations))) if isinstance(n, ast.Import)]
    assert not imported
