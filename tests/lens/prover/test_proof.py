"""The verdicts: right ones for the source, for its correction, for the code, and for equations made wrong."""

from pathlib import Path

import numpy as np
import oracle
import pytest
import sympy
from lens.prover.mutants import equations, mutants

import xhat.equations
from xhat.lens import derivation, theorems
from xhat.lens.prover import merge_proof as chan
from xhat.lens.prover import normal_form as sums
from xhat.lens.prover import prove as proof
from xhat.lens.prover import source
from xhat.lens.prover import theorems as closed_forms
from xhat.lens.prover.corrections import CLAIMS

# Every line of every display, in the order of the source.
VERDICTS = {
    "mean": ["holds"],
    "variance": ["holds for correction=0"],
    "normalization": ["holds"],
    "scale-and-shift": ["holds"],
    "output-gradient": [],
    "gamma-gradient": ["holds"],
    "beta-gradient": ["holds"],
    "path-1": ["wrong", "wrong"],
    "path-2": ["holds", "notation slip", "holds", "holds", "holds"],
    "variance-by-input": ["wrong", "wrong"],
    "path-2-product": ["wrong", "wrong"],
    "path-3": ["holds", "holds", "notation slip", "holds"],
    "zero-path": ["holds"],
    "variance-by-mean": ["wrong", "wrong", "holds"],
    "mean-by-input": ["notation slip"],
    "path-3-product": ["notation slip", "notation slip"],
    "input-gradient": ["notation slip", "wrong", "holds for correction=1"],
}
WHOLE = {
    "variance": "holds for correction=0",
    **dict.fromkeys(
        ("output-gradient", "path-2", "path-3", "mean-by-input", "path-3-product"), "notation slip"
    ),
    **dict.fromkeys(
        ("path-1", "variance-by-input", "path-2-product", "variance-by-mean", "input-gradient"), "wrong"
    ),
}


def corrected(name):
    """The display as it should be."""
    latex = {display.id: display.latex for display in source.displays()}[name]
    return CLAIMS[name].corrected or latex


# ------------------------------------------------------------------------------------------------ the source


def test_every_display_of_the_source_is_judged_in_its_order():
    records = derivation()
    assert [record.id for record in records] == list(VERDICTS)
    assert source.text().count("$$") == 2 * len(records)
    rest = source.text()
    for record in records:
        before, found, rest = rest.partition(f"$${record.source}$$")
        assert found, record.id
        assert "$$" not in before


def test_the_source_is_the_document_as_it_stands():
    document = Path(source.__file__).with_name("source.md").read_text(encoding="utf-8")
    assert document.strip().startswith("Backpropagation Derivation for Batch Normalization")
    assert document.endswith("backpropagation equations for batch normalization.")
    assert source.declared_loss() == "J"
    assert source.declared_size() == "N"


@pytest.mark.parametrize("name", VERDICTS)
def test_each_line_has_the_right_verdict(name):
    record = {record.id: record for record in derivation()}[name]
    assert [step.verdict for step in record.steps] == VERDICTS[name]
    assert record.verdict == WHOLE.get(name, "holds")


def test_the_slips_of_notation_are_all_found():
    found = {record.id: set(record.slips) for record in derivation() if record.slips}
    n = "the number of values is called n, declared as N"
    bound = "the sum over j has no lower bound"
    sign = "a derivative lacks its sign ∂"
    assert found == {
        "output-gradient": {"the loss is called L, declared as J"},
        "path-2": {sign},
        "variance-by-input": {n, "the index i is free on the left and bound by the sum"},
        "path-2-product": {n, bound},
        "path-3": {sign},
        "variance-by-mean": {n},
        "mean-by-input": {n},
        "path-3-product": {n, bound},
        "input-gradient": {n, bound},
    }


def test_a_wrong_line_can_follow_from_the_one_before():
    steps = {record.id: [step.follows for step in record.steps] for record in derivation()}
    assert steps["variance-by-input"] == [False, True]
    assert steps["path-2-product"] == [False, True]
    assert steps["variance-by-mean"] == [False, True, True]
    assert steps["path-1"] == [False, False]
    assert steps["input-gradient"] == [True, False, False]


def test_every_refutation_has_numbers_and_every_proof_has_none():
    for record in derivation():
        for step in record.steps:
            refuted = step.verdict == "wrong" or step.verdict.startswith("holds for")
            assert (step.witness is not None) == refuted
            assert ("refuted" in step.method) == refuted
            if step.witness:
                assert abs(float(step.witness["left"]) - float(step.witness["right"])) > 1e-3
        assert (record.corrected is None) == (record.verdict == "holds")
        assert bool(record.reason) == bool(record.corrected) == bool(record.short)


@pytest.mark.parametrize("name", ["path-1", "input-gradient"])
def test_the_witness_is_the_oracles(name):
    """The left side of a witness against another hand's gradient: exact where the source is not."""
    witness = {record.id: record for record in derivation()}[name].witness
    x, dy = (np.array(witness[key], dtype=np.float64)[:, None] for key in ("x", "dy"))
    gamma, eps = np.array([float(witness["gamma"])]), float(witness["eps"])
    dx = oracle.backward(dy, x, gamma, eps=eps, correction=int(witness["correction"])).dx
    assert float(witness["left"]) == pytest.approx(float(dx[witness["i"] - 1, 0]), rel=1e-11)


# ------------------------------------------------------------------------------------------- the correction


@pytest.mark.parametrize("name", VERDICTS)
def test_every_correction_holds_and_has_no_slip(name):
    for step in proof.judge(corrected(name)):
        assert step.verdict == "holds"
        assert step.follows
        assert step.slips == ()


# A change of sign of the path that is 0, and an index under Kronecker's delta, change nothing.
HARMLESS = (
    r"- \frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial \mu}",
    r"\frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\partial \hat{x}_j}{\partial x_i}",
    r"\frac{\partial L}{\partial \hat{x}_i} \cdot \frac{\delta_{ij}}{\sqrt{\sigma^2 + \epsilon}}",
)


@pytest.mark.parametrize("name", [name for name in VERDICTS if name not in ("output-gradient", "zero-path")])
def test_a_right_equation_made_wrong_is_refuted(name):
    tried = 0
    for equation in equations(corrected(name)):
        for wrong in mutants(equation):
            (step,) = proof.judge(wrong)
            if any(part in wrong for part in HARMLESS):
                assert step.verdict == "holds", wrong
                continue
            tried += 1
            assert step.verdict.startswith(("wrong", "holds for")), wrong
            assert step.witness is not None
    assert tried


def test_the_mutants_are_many():
    assert sum(1 for name in VERDICTS for e in equations(corrected(name)) for _ in mutants(e)) > 150


def test_an_edge_is_judged_for_every_mu():
    """Both derivatives by mu vanish at the mean; one of them is wrong, since the other side of the mean exists."""
    left, right = r"\frac{\partial \sigma^2}{\partial \mu}", r"\frac{2}{N - c} \sum_{i=1}^N (x_i - \mu)"
    assert proof.judge(f"{left} = -{right}")[0].verdict == "holds"
    (step,) = proof.judge(f"{left} = {right}")
    assert step.verdict == "wrong"
    assert step.witness["statistics"] == "free"
    assert float(step.witness["mu"]) != np.mean([float(value) for value in step.witness["x"]])


def test_two_lines_that_hold_for_different_corrections_cannot_both_hold():
    assert proof.worst(["holds", "holds for correction=0", "notation slip"]) == "holds for correction=0"
    assert proof.worst(["holds for correction=1", "holds for correction=0"]) == "wrong"


def test_what_is_neither_proved_nor_refuted_gets_no_verdict():
    with pytest.raises(proof.Undecided, match="isn't proved for every n"):
        proof.judge(r"\gamma = \sqrt{\gamma^2}")  # true for the positive gammas of the data only


def test_a_prover_that_proves_too_much_is_found_out(monkeypatch):
    monkeypatch.setattr(sums, "vanishes", lambda *_: True)
    with pytest.raises(proof.Undecided, match="unsound"):
        proof.judge(r"\mu = \frac{2}{N} \sum_{i=1}^N x_i")


@pytest.mark.parametrize("blind", ["Concrete", "General"])
def test_each_symbolic_world_has_to_agree(blind, monkeypatch):
    monkeypatch.setattr(getattr(proof, blind), "equal", lambda *_: False)
    with pytest.raises(proof.Undecided, match="isn't proved"):
        proof.judge(r"\mu = \frac{1}{N} \sum_{i=1}^N x_i")


# ------------------------------------------------------------------------------------------------- the code


def test_every_closed_form_of_the_code_is_proved():
    proved = theorems()
    assert [theorem.id for theorem in proved if theorem.verdict != "holds"] == []
    called = " ".join(theorem.code for theorem in proved)
    for name in xhat.equations.__all__:
        if name not in ("Paths", "activate", "activation_slope", "silu_slope"):
            assert f"{name}(" in called


@pytest.fixture
def fresh():
    """Worlds of this test's own, since they keep what the code computed."""
    proof._meanings.cache_clear()
    yield
    proof._meanings.cache_clear()


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
    form = closed_forms._FORMS[name]
    assert closed_forms.code_holds(form.latex, form.call)
    proof._meanings.cache_clear()
    function, wrong = WRONG_CODE[name]
    monkeypatch.setattr(xhat.equations, function, wrong)
    if name in ("moments-mean", "moments-m2", "variance", "standardize", "normalize"):
        # The code is the definition here: what can be wrong is that it isn't the formula.
        assert proof.judge(form.latex, weighted=True, corrections=[1])[0].verdict == "wrong"
    else:
        assert not closed_forms.code_holds(form.latex, form.call)


def test_wrong_merges_are_not_proved():
    right = xhat.equations.merge

    def without_the_distance(ma, mu_a, m2_a, mb, mu_b, m2_b):
        return (*right(ma, mu_a, m2_a, mb, mu_b, m2_b)[:2], m2_a + m2_b)

    def with_the_other_weight(ma, mu_a, m2_a, mb, mu_b, m2_b):
        m, _, m2 = right(ma, mu_a, m2_a, mb, mu_b, m2_b)
        return m, mu_a + (mu_b - mu_a) * (ma / m), m2

    def of_equal_sizes(ma, mu_a, m2_a, mb, mu_b, m2_b):
        return right(ma, mu_a, m2_a, ma, mu_b, m2_b)

    for test in (chan._for_every_size, chan._for_small_sizes, chan._in_numbers):
        assert test(right)
        for wrong in (without_the_distance, with_the_other_weight, of_equal_sizes):
            assert not test(wrong)


def test_the_last_closed_forms_say_what_is_left_of_a_gradient():
    """The two theorems about the whole gradient, by the oracle."""
    rng = np.random.default_rng(5)
    x, dy, eps = rng.normal(3, 2, (7, 1)), rng.normal(size=(7, 1)), 0.3
    dx = oracle.backward(dy, x, eps=eps).dx
    normalized, rstd = oracle.forward(x, eps=eps).y, oracle.forward(x, eps=eps).rstd
    assert float(dx.sum()) == pytest.approx(0, abs=1e-15)
    assert float((dx * normalized).sum()) == pytest.approx(
        float(eps * rstd[0] ** 3 * (dy * normalized).sum())
    )


def test_symbols_stand_for_every_correction():
    assert isinstance(closed_forms.ANY_CORRECTION, sympy.Symbol)
    # Were it taken for a number, a formula for one convention would pass as one for all.
    (step,) = proof.judge(
        r"\sigma^2 = \frac{1}{m} \sum_{i=1}^N w_i (x_i - \mu)^2",
        weighted=True,
        corrections=[closed_forms.ANY_CORRECTION],
    )
    assert step.verdict == "wrong"
