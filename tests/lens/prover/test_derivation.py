"""The source derivation: the verdict on every line, docs/derivation.md, and `xhat derive`.

Every test that needs the whole derivation is in this file, since one process proves it once.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest

import xhat.equations
from xhat.cli import main
from xhat.errors import ArgumentError
from xhat.lens import derivation, derive, theorems
from xhat.lens.prover import source
from xhat.lens.prover.document import document

DOCUMENT = Path(__file__).parents[3] / "docs" / "derivation.md"

# The verdict on every line of every display, in the order of the source.
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


def test_every_display_of_the_source_is_judged_in_order():
    records = derivation()
    assert [record.id for record in records] == list(VERDICTS)
    assert source.text().count("$$") == 2 * len(records)
    rest = source.text()
    for record in records:
        before, found, rest = rest.partition(f"$${record.source}$$")
        assert found, record.id
        assert "$$" not in before


def test_the_source_is_the_unchanged_document():
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
def test_the_left_side_of_a_witness_is_right(name):
    """The left side of a witness equals the gradient of the oracle; the equation of the source does not."""
    witness = {record.id: record for record in derivation()}[name].witness
    x, dy = (np.array(witness[key], dtype=np.float64)[:, None] for key in ("x", "dy"))
    gamma, eps = np.array([float(witness["gamma"])]), float(witness["eps"])
    dx = oracle.backward(dy, x, gamma, eps=eps, correction=int(witness["correction"])).dx
    assert float(witness["left"]) == pytest.approx(float(dx[witness["i"] - 1, 0]), rel=1e-11)


def test_every_closed_form_of_the_code_is_proved():
    proved = theorems()
    assert [theorem.id for theorem in proved if theorem.verdict != "holds"] == []
    called = " ".join(theorem.code for theorem in proved)
    for name in xhat.equations.__all__:
        if name not in ("Paths", "activate", "activation_slope", "silu_slope"):
            assert f"{name}(" in called


# -------------------------------------------------------------------------------------------- the document


@pytest.fixture
def text():
    return document(derivation(), theorems())


def test_the_document_is_current(text):
    assert DOCUMENT.read_text(encoding="utf-8") == text, "run: xhat derive --format md -o docs/derivation.md"


def test_every_display_is_shown_as_in_the_source_and_corrected(text):
    for record in derivation():
        assert record.source.strip() in text
        assert record.corrected is None or record.corrected in text
    for theorem in theorems():
        assert theorem.latex in text


def test_every_correction_has_its_reason_and_its_numbers(text):
    for record in derivation():
        assert record.words in text
        assert record.reason in text
        if record.witness:
            assert f"{float(record.witness['left']):.6g} on the left" in text


def test_the_document_states_where_a_proof_is_weaker(text):
    assert "; proved for n = 1 and 2 by expansion (a test proves n = 3).\n" in text


# ----------------------------------------------------------------------------------------------- the command


def test_the_table_has_every_display_and_closed_form(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["derive"]) == 0
    shown = capsys.readouterr().out
    for record in derivation():
        (line,) = re.findall(rf"^│ \d+ +│ {record.id} .*$", shown, re.MULTILINE)
        assert f"│ {record.verdict} " in line
        assert record.short in line
    for theorem in theorems():
        assert theorem.code in shown
    assert "17 displays: 6 × holds, 5 × notation slip, 5 × wrong, 1 × holds for correction=0." in shown


def test_one_display_is_explained(capsys):
    assert main(["derive", "path-1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# 8. The direct path\n")
    record = derivation()[7]
    for part in (record.source, record.corrected, record.reason, record.method):
        assert part in shown
    assert main(["derive", "mean"]) == 0
    assert "In the source" not in capsys.readouterr().out


def test_the_text_is_written_or_printed(text, capsys, tmp_path):
    assert main(["derive", "--format", "md", "-o", str(tmp_path / "d.md")]) == 0
    assert (tmp_path / "d.md").read_text(encoding="utf-8") == text
    assert capsys.readouterr().out == ""
    assert main(["derive", "--format", "md"]) == 0
    assert capsys.readouterr().out == text


WITHOUT_VARIANCE = (
    r"\frac{\partial L}{\partial x_i} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}"
    r" \left(\frac{\partial L}{\partial y_i} - \frac{1}{N} \sum_{j=1}^N \frac{\partial L}{\partial y_j}\right)"
)


@pytest.mark.parametrize(
    ("equation", "status", "begins"),
    [
        (r"\sum_{i=1}^N \hat{x}_i = 0", 0, "holds: sum_i(xhat_i) = 0\n    proved for every n"),
        (r"\sigma^2 = \frac{1}{N} \sum_{i=1}^N (x_i - \mu)^2", 0, "holds for correction=0: var = 1 / N"),
        (
            WITHOUT_VARIANCE,
            1,
            "wrong: dL/dx_i = gamma / sqrt(var + eps) * (dL/dy_i - 1 / N * sum_j(dL/dy_j))",
        ),
    ],
)
def test_any_equation_is_judged(equation, status, begins, capsys):
    assert main(["derive", "--equation", equation]) == status
    shown = capsys.readouterr().out
    assert shown.startswith(begins)
    assert ("refuted" in shown and "left 0.48" in shown) or status == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--equation", "x_i"], "the equation has no equals sign, expected left = right."),
        (["--equation", r"\alpha = 1"], r"the equation can't be read: can't read '\alpha' in '\alpha'."),
        (
            ["--equation", r"\frac{\partial \mu}{\partial \gamma} = 0"],
            r"the equation can't be read: the graph has no edge from \gamma to \mu.",
        ),
        (
            ["--equation", r"\gamma = \sqrt{\gamma^2}"],
            "no numbers refute the equation, but it isn't proved for every n.",
        ),
        (
            ["path-4"],
            f"there is no display 'path-4', expected one of {', '.join(d.id for d in source.displays())}.",
        ),
        (["-o", "x.md"], "a table has no file, add --format md."),
    ],
)
def test_an_error_is_one_sentence(arguments, sentence, capsys):
    assert main(["derive", *arguments]) == 2
    assert capsys.readouterr().err == f"xhat derive: {sentence}\n"


def test_an_unknown_style_and_an_unwritable_path_are_refused(capsys, tmp_path):
    with pytest.raises(ArgumentError, match=r"^derive: format is 'html', expected table or md\.$"):
        derive("html")
    missing = tmp_path / "no" / "d.md"
    assert main(["derive", "--format", "md", "-o", str(missing)]) == 2
    sentence = f"xhat derive: can't write {missing} (No such file or directory), choose another --output.\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("extra", ["sympy", "rich"])
def test_a_missing_extra_is_one_sentence(extra):
    code = f"import sys; sys.modules[{extra!r}] = None; from xhat.cli import main; sys.exit(main(['derive']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == f"xhat derive: {extra} is missing, install it with pip install 'xhat[lens]'.\n"
    assert done.returncode == 2
