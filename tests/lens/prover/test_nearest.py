"""The mistake in a wrong equation: the nearest true equation, and what differs."""

import pytest

from xhat.lens.prover.reading import judge_printed

CLOSED = r"dx_i = \frac{\gamma}{N \sqrt{\sigma^2 + \epsilon}} "
RSTD = r"\frac{1}{\sqrt{\sigma^2 + \epsilon}}"

MISTAKES = {
    r"\hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2}}": ["sqrt(var) should be sqrt(var + eps)"],
    r"\hat x_i = \frac{x_i - \mu}{\sqrt{\sigma^2} + \epsilon}": ["sqrt(var) + eps should be sqrt(var + eps)"],
    r"\sigma^2 = \frac1N \sum_i (x_i - \mu)": ["x_i - mu should be (x_i - mu)^2"],
    r"d\gamma = \sum_i dy_i x_i": ["x_i should be xhat_i"],
    r"d\gamma = \sum_i dy_i": ["dL/dy_i should be dL/dy_i * xhat_i"],
    r"d\sigma^2 = -\frac12 \sum_i d\hat x_i (x_i - \mu) (\sigma^2 + \epsilon)^{-1/2}": [
        "(var + eps)^(-1 / 2) should be (var + eps)^((-3) / 2)"
    ],
    rf"d\mu = \sum_i d\hat x_i {RSTD}": ["sum_i(dL/dxhat_i * 1 / sqrt(var + eps)) should be -sum_i("],
    CLOSED + r"(N dy_i - \sum_j dy_j - \hat x_i \sum_j dy_j)": ["dL/dy_j should be dL/dy_j * xhat_j"],
    CLOSED + r"(N dy_i - \sum_j dy_j + \hat x_i \sum_j dy_j \hat x_j)": [
        "xhat_i * sum_j(dL/dy_j * xhat_j) should be -"
    ],
    CLOSED + r"(N dy_i - \sum_j dy_j)": ["is missing"],
    rf"dx_i = {RSTD} (dy_i - \frac1N \sum_j dy_j - \frac1N \hat x_i \sum_j dy_j \hat x_j)": [
        "lacks the factor gamma"
    ],
    rf"dx_i = \gamma {RSTD} (dy_i - \sum_j dy_j - \hat x_i \sum_j dy_j \hat x_j)": [
        "has to be divided by N",
        "has to be divided by N",
    ],
    r"dx_i = \frac{\gamma}{\sigma} (dy_i - \frac1N \sum_j dy_j)": [
        "sqrt(var) should be sqrt(var + eps)",
        "is missing",
    ],
}


@pytest.mark.parametrize("latex", MISTAKES)
def test_a_mistake_is_named_by_the_nearest_true_equation(latex):
    (found,) = judge_printed(latex)
    (nearest,) = found.nearest
    assert found.steps[0].verdict == "wrong"
    assert nearest is not None
    assert len(nearest.changes) == len(MISTAKES[latex])
    for change, expected in zip(nearest.changes, MISTAKES[latex], strict=True):
        assert expected in change


def test_a_true_equation_has_no_mistake():
    (found,) = judge_printed(r"\mu = \frac1N \sum_i x_i")
    assert found.nearest == (None,)


def test_an_equation_that_no_small_change_makes_true_gets_no_name():
    (found,) = judge_printed(r"dx_i = \beta^7 \hat x_i^{11}")
    assert found.steps[0].verdict == "wrong"
    assert found.nearest == (None,)
