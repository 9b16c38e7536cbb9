"""The reference itself, against exact fractions and against hand-made numbers."""

from fractions import Fraction

import numpy as np
import oracle
import pytest


@pytest.mark.parametrize("weights", [None, [1, 0, 2.5, 0.25, 3]])
def test_the_oracles_moments_are_those_of_exact_fractions(weights: list[float] | None) -> None:
    values = [1e6 + 0.1, 1e6 - 0.7, 1e6, 1e6 + 3.25, 1e6 - 2.5]
    m, mean, m2 = oracle.exact_moments(values, weights)
    mask = None if weights is None else np.array(weights).reshape(5, 1)
    got = oracle.moments(np.array(values).reshape(5, 1), mask=mask)
    assert Fraction(float(got.m)) == m
    assert float(got.mean[0]) == pytest.approx(float(mean), rel=1e-15)
    assert float(got.m2[0]) == pytest.approx(float(m2), rel=1e-11)


def test_the_oracles_numbers_for_two_values() -> None:
    """x = (-1, 1), eps = 3: var = 1, rstd = 1/2, xhat = x / 2; of dy = (1, 0) by hand, dx = (3, -3) / 16."""
    x, dy = np.array([[-1.0], [1.0]]), np.array([[1.0], [0.0]])
    assert oracle.forward(x, eps=3.0).y.tolist() == [[-0.5], [0.5]]
    got = oracle.backward(dy, x, eps=3.0)
    assert (got.dgamma.tolist(), got.dbeta.tolist()) == ([-0.5], [1.0])
    assert got.dx.tolist() == [[3 / 16], [-3 / 16]]
    # With m - 1: var = 2, rstd = 5^(-1/2), and dx_1 = rstd (1 - 1/2) - rstd^3 / 1.
    got = oracle.backward(dy, x, eps=3.0, correction=1)
    assert float(got.dx[0, 0]) == pytest.approx(0.5 * 5**-0.5 - 5**-1.5, rel=1e-15)
