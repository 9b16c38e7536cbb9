"""The verdict: three answers an output, in the headline, the table, the exit status and the truth value."""

import json
from dataclasses import replace

import pytest

from xhat.lens.checker.faults import TITLES
from xhat.lens.checker.verdict import FormulaRead, FoundMistake, Row, Verdict, WrongLine

Y = Row("y", True, 1e-16, "")
BAD = Row("dx", False, 0.5, "no known mistake explains it")
UNJUDGED = tuple(Row(o, None, None, "your backward raised ValueError: no") for o in ("dx", "dgamma"))


@pytest.mark.parametrize(
    ("rows", "options", "right", "status", "headline"),
    [
        ((Y,), {}, True, 0, "f: right (y)."),
        ((Y, BAD), {}, False, 1, "f: wrong: dx."),
        (
            (Y, *UNJUDGED),
            {},
            None,
            2,
            "f: y right; dx, dgamma not judged: your backward raised ValueError: no.",
        ),
        (
            (Y, BAD, UNJUDGED[1]),
            {},
            False,
            1,
            "f: wrong: dx; dgamma not judged: your backward raised ValueError: no.",
        ),
        ((Y,), {"not_judged": ("other (not called)",)}, True, 0, "f: right (y)."),
        (
            (Y,),
            {"not_judged": ("other (not called)",), "incomplete": True},
            None,
            2,
            "f: y right; other (not called).",
        ),
        ((), {"problem": "it hangs."}, None, 2, "f: could not be judged: it hangs."),
        ((), {}, None, 2, "f: could not be judged: nothing was run."),
        ((Y,), {"unnamed": ("y: off",)}, False, 1, "f: wrong: y: off."),
    ],
)
def test_a_verdict_has_one_of_three_answers(
    rows: tuple[Row, ...], options: dict[str, object], right: bool | None, status: int, headline: str
) -> None:
    verdict = Verdict("f", rows, **options)  # type: ignore[arg-type]
    assert (verdict.right, verdict.status, bool(verdict)) == (right, status, right is True)
    assert verdict.headline == headline
    assert json.loads(verdict.as_json())["right"] is right


def test_every_part_is_printed_and_kept_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    title = "mean path dropped"
    line = WrongLine("backward", 7, "    dmu = 0", "dmu", "0", "-rstd Σ dxhat")
    formula = FormulaRead("dx", "γ rstd dy", "γ rstd (dy - Σ dy / N)", ("Σ dy",))
    verdict = Verdict(
        "f",
        (Y, BAD, replace(UNJUDGED[1], why="no reason")),
        mistakes=(FoundMistake((title,), ("dx",), *TITLES[title]),),
        not_judged=("evaluation (the code has no mode)",),
        wrong_lines=(line,),
        formulas=(formula,),
    )
    verdict.show()
    shown = " ".join(capsys.readouterr().out.split())
    for text in (str(verdict), shown):
        words = " ".join(text.split())
        assert "First wrong line: backward, line 7: dmu = 0 dmu is 0; expected -rstd Σ dxhat." in words
        assert "dx, read from the numbers: yours: γ rstd dy exact: γ rstd (dy - Σ dy / N)" in words
        assert "differs in: Σ dy" in words
        assert "Not judged: evaluation (the code has no mode)" in words
        assert "not judged" in words.split("no reason")[1]
    data = verdict.as_dict()
    assert data["wrong_lines"][0]["line"] == 7 and data["formulas"][0]["differs"] == ("Σ dy",)
