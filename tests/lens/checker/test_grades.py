"""What a class gets: rows, results for an autograder, hints, and the mistakes of all; from verdicts made by hand."""

import csv
import json
from pathlib import Path

import pytest

from xhat.cli import main
from xhat.lens.checker.files.grades import (
    COLUMNS,
    Graded,
    causes,
    with_missing,
    write_csv,
    write_gradescope,
)
from xhat.lens.checker.files.hints import LEVELS, hinted
from xhat.lens.checker.files.verdicts import Verdicts, revived
from xhat.lens.checker.verdict import FormulaRead, FoundMistake, Row, Verdict, WrongLine

NAME = "mean path dropped"
WRONG = Verdict(
    "forward and backward",
    rows=(
        Row("y", True, 1e-16, ""),
        Row("dx", False, 0.5, NAME),
        Row("dgamma", False, 0.25, "no known mistake explains it"),
        Row("dbeta", None, None, "backward returned None"),
    ),
    mistakes=(FoundMistake((NAME,), ("dx",), "path-3", "subtract the mean of dxhat"),),
    unnamed=("dgamma: can't name the mistake",),
    conventions={"variance": "N"},
    notes=("a note",),
    wrong_lines=(WrongLine("backward", 12, "dx = dxhat * rstd", "dx", "rstd dxhat", "dx"),),
    formulas=(FormulaRead("dx", "gamma r dy", "gamma r (dy - ...)", ("- mean",)),),
)
RIGHT = Verdict("forward", rows=(Row("y", True, 1e-16, ""),))
CLASS = [
    Graded("ada", (Verdicts("ada.py", (RIGHT, WRONG)),)),
    Graded("=bob", (Verdicts("=bob.py", (WRONG,)),)),
    Graded("cleo", (Verdicts("cleo.py", problem="cleo.py is empty."),)),
    Graded("dan", (), "none of the 3 files of dan defines a batch norm by its names."),
]


def test_the_csv_has_a_row_for_each_submission_and_output(tmp_path: Path) -> None:
    write_csv(tmp_path / "grades.csv", CLASS)
    with (tmp_path / "grades.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and len(rows) == 5 + 4 + 1 + 1
    assert [row["answer"] for row in rows[:5]] == ["right", "right", "wrong", "wrong", "not judged"]
    dx = rows[2]
    assert (dx["submission"], dx["functions"], dx["output"], dx["error"]) == (
        "ada",
        WRONG.subject,
        "dx",
        "0.5",
    )
    assert (dx["mistake"], dx["line"], dx["formula"]) == (NAME, "backward, line 12", "gamma r dy")
    assert rows[4]["reason"] == "backward returned None"
    assert rows[5]["submission"] == "'=bob"  # no formula of a spreadsheet
    assert [row["reason"] for row in rows[9:]] == ["cleo.py is empty.", CLASS[3].problem]


def test_gradescope_gets_a_test_for_each_output(tmp_path: Path) -> None:
    write_gradescope(tmp_path / "results.json", CLASS[:1], points=10)
    results = json.loads((tmp_path / "results.json").read_text())
    assert [test["name"] for test in results["tests"]][:2] == ["y of forward", "y of forward and backward"]
    assert [test["score"] for test in results["tests"]] == [2, 2, 0, 0, 0]
    assert {test["max_score"] for test in results["tests"]} == {2}
    assert [test["status"] for test in results["tests"]] == ["passed", "passed", "failed", "failed", "failed"]
    assert NAME in results["tests"][2]["output"] and "backward returned None" in results["tests"][4]["output"]
    written = write_gradescope(tmp_path / "many", CLASS, points=None)
    assert [path.name for path in written] == ["ada.json", "=bob.json", "cleo.json", "dan.json"]
    (only,) = json.loads(written[3].read_text())["tests"]
    assert (only["score"], only["max_score"], only["status"]) == (0, 1, "failed")


def test_a_hint_shows_what_its_level_shows_and_no_more() -> None:
    secrets = {  # the text of a verdict, and the first level that shows it
        "output": ("dx", "dgamma"),
        "line": ("line 12",),
        "formula": ("gamma r dy",),
        "all": (NAME, "can't name", "5.0e-01", "a note", "subtract the mean"),
    }
    for level in LEVELS:
        shown = hinted(Verdicts("ada.py", (WRONG,)), level)
        text = str(shown) + json.dumps([r.why for r in shown[0].rows])
        assert shown.status == 1 and "backward returned None" in text
        for first, words in secrets.items():
            for word in words:
                assert (word in text) == (LEVELS.index(level) >= LEVELS.index(first)), (level, word)
    assert hinted(Verdicts("ada.py", (RIGHT,)), "wrong")[0].headline == "forward: right (all outputs)."
    assert hinted(Verdicts("ada.py", (WRONG,)), "wrong")[0].headline == (
        "forward and backward: wrong: some output; some output not judged: backward returned None."
    )


def test_mistakes_are_grouped_over_the_class() -> None:
    found = dict(causes(CLASS))
    assert found[NAME] == ["ada", "=bob"]
    assert found["wrong: dgamma"] == ["ada", "=bob"]
    assert found["not judged: the file is empty."] == ["cleo"]
    assert found[f"not judged: {CLASS[3].problem}"] == ["dan"]
    assert [len(names) for _, names in causes(CLASS)] == [2, 2, 2, 1, 1]


def test_an_expected_function_that_is_missing_is_not_judged() -> None:
    ada, dan = (with_missing(one, ["backward", "backward_alt"]) for one in (CLASS[0], CLASS[3]))
    assert [verdict.subject for verdict in ada.files[0]] == [
        "forward",
        "forward and backward",
        "backward_alt",
    ]
    assert ada.files[0][2].problem == "ada has no backward_alt." and ada.status == 1
    assert [verdict.problem for verdict in dan.files[0]] == [
        "dan has no backward.",
        "dan has no backward_alt.",
    ]
    assert with_missing(CLASS[0], ["backward"]) is CLASS[0]


def test_a_verdict_is_the_same_after_its_way_through_json() -> None:
    from dataclasses import asdict

    verdicts = Verdicts("ada.py", (RIGHT, WRONG), notes=("a",), others=("b",), output="c")
    back = revived(Verdicts, json.loads(json.dumps(asdict(verdicts))))
    assert vars(back) == vars(verdicts)


def test_the_command_judges_a_folder_of_submissions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    specimens = Path(__file__).parent / "specimens"
    folder = tmp_path / "submissions"
    (folder / "ada" / "src").mkdir(parents=True)
    (folder / "ada" / "src" / "layers.py").write_text((specimens / "closed.py").read_text())
    (folder / "ada" / "plots.py").write_text("def plot(): pass\n")
    (folder / "bob.py").write_text((specimens / "the_source.py").read_text())
    (folder / "cleo.py").write_text("def softmax(x): return x\n")
    assert main(["check", str(folder), "--csv", str(tmp_path / "grades.csv"), "--time-limit", "120"]) == 1
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("ada", "bob", "cleo", "variance path"))
    rows = list(csv.DictReader((tmp_path / "grades.csv").read_text("utf-8-sig").splitlines()))
    answers = [(row["submission"], row["output"], row["answer"]) for row in rows if row["answer"] != "right"]
    assert answers == [("bob", "dx", "wrong"), ("cleo", "", "not judged")]

    # What holds no batch norm is left out where nothing is graded.
    assert main(["check", str(folder), "--json", "--hint", "output", "--time-limit", "120"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert [(file["path"], file["status"]) for file in found["files"]] == [("layers.py", 0), ("bob.py", 1)]
    assert "variance path" not in printed.out and "cleo.py defines no batch norm" not in printed.out
