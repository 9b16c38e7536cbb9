"""The prover: it proves corrected displays and the code, and refutes wrong equations and wrong code."""

import numpy as np
import oracle
import pytest
import sympy
from lens.prover.mutants import equations, mutants

import xhat.equations
from xhat.lens.prover import normal_form, prove, source, theorems
from xhat.lens.prover.corrections import CLAIMS


def corrected(name):
    """The corrected display."""
    latex = {display.id: display.latex for display in source.displays()}[name]
    return CLAIMS[name].corrected or latex


@pytest.mark.parametrize("name", CLAIMS)
def test_every_correction_holds_and_has_no_slip(name):
    for step in prove.judge(corrected(name)):
        assert step.verdict == "holds"
        assert step.follows
        assert step.slips == ()


# The sign of the zero path, and an index under Kronecker's delta, have no effect.
HARMLESS = (
    r"- \frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial \mu}",
    r"\frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_j}{\partial x_i}",
    r"\frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\delta_{ij}}{\sqrt{\sigma^2 + \epsilon}}",
)


@pytest.mark.parametrize("name", [name for name in CLAIMS if name not in ("output-gradient", "zero-path")])
def test_every_mutant_is_refuted(name):
    tried = 0
    for equation in equations(corrected(name)):
        for wrong in mutants(equation):
            (step,) = prove.judge(wrong)
            if any(part in wrong for part in HARMLESS):
                assert step.verdict == "holds", wrong
                continue
            tried += 1
            assert step.verdict.startswith(("wrong", "holds for")), wrong
            assert step.witness is not None
    assert tried


def test_the_mutants_are_many():
    assert sum(1 for name in CLAIMS for e in equations(corrected(name)) for _ in mutants(e)) > 150


def test_an_edge_is_judged_for_every_mu():
    """Both derivatives by mu vanish at the mean, but one of them has the wrong sign everywhere else."""
    left, right = r"\frac{\partial \sigma^2}{\partial \mu}", r"\frac{2}{N - c} \sum_{i=1}^N (x_i - \mu)"
    assert prove.judge(f"{left} = -{right}")[0].verdict == "holds"
    (step,) = prove.judge(f"{left} = {right}")
    assert step.verdict == "wrong"
    assert step.witness["statistics"] == "free"
    assert float(step.witness["mu"]) != np.mean([float(value) for value in step.witness["x"]])


def test_two_lines_that_hold_for_different_corrections_cannot_both_hold():
    assert prove.worst(["holds", "holds for correction=0", "notation slip"]) == "holds for correction=0"
    assert prove.worst(["holds for correction=1", "holds for correction=0"]) == "wrong"


def test_what_is_neither_proved_nor_refuted_gets_no_verdict():
    with pytest.raises(prove.Undecided, match="isn't proved for every n"):
        prove.judge(r"\gamma = \sqrt{\gamma^2}")  # true for positive gamma, as in all the data


def test_a_prover_that_proves_too_much_is_detected(monkeypatch):
    monkeypatch.setattr(normal_form, "vanishes", lambda *_: True)
    with pytest.raises(prove.Undecided, match="unsound"):
        prove.judge(r"\mu = \frac{2}{N} \sum_{i=1}^N x_i")


@pytest.mark.parametrize("blind", ["FixedSize", "SymbolicSize"])
def test_each_symbolic_domain_has_to_agree(blind, monkeypatch):
    monkeypatch.setattr(getattr(prove, blind), "equal", lambda *_: False)
    with pytest.raises(prove.Undecided, match="isn't proved"):
        prove.judge(r"\mu = \frac{1}{N} \sum_{i=1}^N x_i")


# ------------------------------------------------------------------------------------------------- the code


@pytest.fixture
def fresh():
    """Evaluators for this test alone: they cache values that the code computed."""
    prove._evaluators.cache_clear()
    yield
    prove._evaluators.cache_clear()


PATHS = xhat.equations.paths
WRONG_CODE = {
    "moments-mean": ("moments", lambda x, total, m, w=1: (total(x) / m, 0)),
    "moments-m2": (
        "moments",
        lambda x, total, m, w=1: (total(w * x) / m, total((x - total(w * x) / m) ** 2)),
    ),
    "variance": ("variance", lambda m2, m, correction=0: m2 / m),
    "standardize": ("reciprocal_std", lambda var, eps, sqrt: 1 / (sqrt(var) + eps)),
    "normalize": ("normalize", lambda x, mu, rstd, gamma=1, beta=0: (x - mu) * (gamma * rstd) - beta),
    "sum-dy": ("gradient_sums", lambda dy, xhat, total: (total(dy * dy), 0)),
    "sum-dy-xhat": ("gradient_sums", lambda dy, xhat, total: (0, 2 * total(dy * xhat))),
    "direct": ("paths", lambda *a, rstd, **k: PATHS(*a, rstd=rstd**2, **k)),
    "through-mean": ("paths", lambda *a, w, **k: PATHS(*a, **k)),
    "through-variance": ("paths", lambda *a, correction, **k: PATHS(*a, **k)),
    "input-gradient": ("paths", lambda *a, **k: PATHS(*a, **k)._replace(mean=0)),
}


@pytest.mark.parametrize("name", WRONG_CODE)
@pytest.mark.usefixtures("fresh")
def test_wrong_code_is_not_proved(name, monkeypatch):
    form = theorems._FORMS[name]
    assert theorems.code_holds(form.latex, form.call)
    prove._evaluators.cache_clear()
    function, wrong = WRONG_CODE[name]
    monkeypatch.setattr(xhat.equations, function, wrong)
    if name in ("moments-mean", "moments-m2", "variance", "standardize", "normalize"):
        # Here the code is the definition, so the formula is refuted.
        assert prove.judge(form.latex, weighted=True, corrections=[1])[0].verdict == "wrong"
    else:
        assert not theorems.code_holds(form.latex, form.call)


def test_the_theorems_about_the_whole_gradient_agree_with_the_oracle():
    rng = np.random.default_rng(5)
    x, dy, eps = rng.normal(3, 2, (7, 1)), rng.normal(size=(7, 1)), 0.3
    dx = oracle.backward(dy, x, eps=eps).dx
    normalized, rstd = oracle.forward(x, eps=eps).y, oracle.forward(x, eps=eps).rstd
    assert float(dx.sum()) == pytest.approx(0, abs=1e-15)
    assert float((dx * normalized).sum()) == pytest.approx(
        float(eps * rstd[0] ** 3 * (dy * normalized).sum())
    )


def test_a_symbolic_correction_stands_for_every_correction():
    assert isinstance(theorems.ANY_CORRECTION, sympy.Symbol)
    # As a number, it would let a formula for one convention pass for all.
    (step,) = prove.judge(
        r"\sigma^2 = \frac{1}{m} \sum_{i=1}^N w_i (x_i - \mu)^2",
        weighted=True,
        corrections=[theorems.ANY_CORRECTION],
    )
    assert step.verdict == "wrong"
