"""The parser: trees, slips of notation, and errors."""

import pytest

from xhat.lens.prover import source
from xhat.lens.prover.expressions import spell_statement
from xhat.lens.prover.parse import parse

SPELLED = {
    "mean": "mu = 1 / N * sum_i(x_i)",
    "variance": "var = 1 / N * sum_i((x_i - mu)^2)",
    "normalization": "xhat_i = (x_i - mu) / sqrt(var + eps)",
    "scale-and-shift": "y_i = gamma * xhat_i + beta",
    "output-gradient": "dL/dy_i",
    "path-1": "dL/dx_i = dL/dxhat_i * dxhat_i/dx_i = gamma * dL/dy_i",
    "variance-by-input": "dvar/dx_i = -2 / (N - 1) * sum_i(x_i - mu)"
    " = -2 / (N - 1) * sqrt(var + eps) * sum_i(xhat_i)",
    "path-3": "dL/dmu = sum_i(dL/dxhat_i * dxhat_i/dmu) + dL/dvar * dvar/dmu"
    " = sum_i(dL/dxhat_i * dxhat_i/dmu) + 0"
    " = gamma * sum_i(dL/dy_i * dxhat_i/dmu)"
    " = -gamma / sqrt(var + eps) * sum_i(dL/dy_i)",
    "variance-by-mean": "dvar/dmu = 2 / (N - 1) * sum_i(x_i - mu)"
    " = 2 / (N - 1) * (sum_i(x_i) - sum_i(mu)) = 0",
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_display_is_parsed_as_intended(name):
    latex = {display.id: display.latex for display in source.displays()}[name]
    assert spell_statement(parse(latex)) == SPELLED[name]


@pytest.mark.parametrize(
    ("latex", "spelled"),
    [
        (r"\mu = \sum_{i=1}^N x_i \cdot y_i + w_j", "mu = sum_i(x_i * y_i) + w_j"),
        (r"\mu = \left(\sum_{i=1}^N x_i\right)^2 y_j", "mu = sum_i(x_i)^2 * y_j"),
        (r"\mu = -\hat{x}_i^{2} (N-c)^3", "mu = -xhat_i^2 * (N - c)^3"),
        (r"\mu = \frac{\frac{1}{2}}{\frac{3}{\sqrt 4}}", "mu = 1 / 2 / (3 / sqrt(4))"),
        (r"\sigma^2 = \sum_{i=2}^{N} \delta_{ij}", "var = sum_{i=2}(delta_ij)"),
        (r"M_2 = (N - c) \sigma^2", "m2 = (N - c) * var"),
    ],
)
def test_extent_of_sums_and_precedence(latex, spelled):
    assert spell_statement(parse(latex)) == spelled


@pytest.mark.parametrize(
    ("latex", "slip"),
    [
        (r"\mu = \frac{1}{n}", "the number of values is called n, declared as N"),
        (r"\mu = \sum_j^N x_j", "the sum over j has no lower bound"),
        (r"\mu = \frac{\hat{x}_i}{\partial \mu}", "a derivative lacks its sign ∂"),
        (r"\mu = \frac{\partial L}{\mu}", "a derivative lacks its sign ∂"),
        (r"x_i = \sum_{i=1}^N x_i", "the index i is free on the left and bound by the sum"),
        (r"\frac{\partial \hat{x}_i}{\mu} = 1", "a derivative lacks its sign ∂"),
    ],
)
def test_slips_are_noted(latex, slip):
    assert parse(latex).slips == ((slip,),)


def test_correct_notation_has_no_slip():
    assert parse(r"x_i = \frac{\partial L}{\partial x_i} \frac{1}{N} \sum_{j=1}^N x_j").slips == ((),)
    assert parse(r"\mu = \frac{1}{n}", size="n").slips == ((),)


@pytest.mark.parametrize(
    ("latex", "reason"),
    [
        (r"\alpha = 1", r"can't read '\alpha' in '\alpha'"),
        (r"\mu = L", "can't read 'L' in 'L'"),
        (r"\mu = x", "x has no index in 'x'"),
        (r"\mu_a = 1", r"\mu has an index in '\mu_a'"),
        (r"\mu = \sum_{i=1}^m x_i", r"a sum that doesn't end at N in '\sum_{i=1}^m x_i'"),
        (r"\mu = \sum_{i=0}^N x_i", r"a sum that starts at 0, neither 1 nor 2, in '\sum_{i=0}^N x_i'"),
        (r"\mu = \sum_{i=k}^N x_i", r"expected a number, found 'k' in '\sum_{i=k}^N x_i'"),
        (r"\mu = (x_i", "expected ')', found the end in '(x_i'"),
        (r"\mu = \frac{1}{2", r"expected '}', found the end in '\frac{1}{2'"),
        (r"\mu = \frac{1", r"unbalanced braces in '\frac{1'"),
        (r"\mu = ", "expected an expression, found the end in ''"),
        (r"\mu = x_i)", "can't read ')' in 'x_i)'"),
        (r"\mu = 1 / 2", "can't read '/' in '1 / 2'"),
        (r"\mu = 9^{9^{9}}", "an exponent above 99, or with a power in it, in '9^{9^{9}}'"),
        (r"\mu = 9^{1000}", "an exponent above 99, or with a power in it, in '9^{1000}'"),
    ],
)
def test_everything_else_is_refused(latex, reason):
    with pytest.raises(ValueError) as refused:  # noqa: PT011 (the whole sentence is compared)
        parse(latex)
    assert str(refused.value) == reason


@pytest.mark.parametrize("latex", [r"\frac{1}{", r"\frac{1}", r"\frac", r"\frac{"])
def test_a_fraction_that_ends_early_is_refused(latex: str) -> None:
    with pytest.raises(ValueError, match=r"expected|unbalanced"):
        parse(latex)
