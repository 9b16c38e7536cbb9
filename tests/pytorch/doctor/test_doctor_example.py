"""The example of the doctor prints what its page shows, and the README's code runs on its network."""

import contextlib
import io
import re
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("rich")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "07_a_model_that_evaluates_badly.py"
NUMBER = r"\d+(?:\.\d+)?(?:e[+-]\d+)?"


class Ran(NamedTuple):
    """The names that the example leaves, and what it printed."""

    names: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def example() -> Ran:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        names = runpy.run_path(str(EXAMPLE))
    return Ran(names, printed.getvalue())


def words(text: str) -> str:
    """The text without numbers, whose last digits depend on the processor, and without the lines of tables."""
    return " ".join(re.sub(rf"{NUMBER}|[━╇┃│]", " ", text).split())


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(NUMBER, text)]


def test_the_page_shows_what_the_example_prints(example: Ran) -> None:
    (shown,) = re.findall(
        r"^```\n(Batch norm hurts.*?)\n```",
        (ROOT / "docs" / "doctor.md").read_text("utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    assert words(shown) in words(example.printed)
    start = example.printed.index("Batch norm hurts")
    here = numbers(example.printed[start:])[: len(numbers(shown))]
    assert here == pytest.approx(numbers(shown), rel=0.3)


def test_the_shares_that_the_readme_names(example: Ran) -> None:
    named = re.search(
        r"reads (\S+) % .*? reads (\S+) %, and (\S+) % after the treatment",
        (ROOT / "README.md").read_text("utf-8"),
        re.DOTALL,
    )
    assert named is not None
    printed = re.findall(r"(\d+\.\d)%", example.printed)
    assert [float(share) for share in printed] == pytest.approx(
        [float(share) for share in named.groups()], abs=3
    )


def test_the_code_of_the_readme_diagnoses_and_treats(
    example: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    (block,) = (block for block in code if "diagnose" in block)
    names = dict(example.names)
    exec(compile(block, "README.md", "exec"), names)
    assert names["d"].healthy  # the example has treated it
    assert "does not hurt" in capsys.readouterr().out
    assert not names["done"].applied
    names["d"].to_html("doctor.html")
    assert "<title>Sequential: xhat doctor</title>" in Path("doctor.html").read_text("utf-8")
