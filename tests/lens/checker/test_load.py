"""Files and the command line: the functions of a file, reasons for status 2, JSON, and output in pytest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from xhat.cli import main
from xhat.lens import check_file

SPECIMENS = Path(__file__).parent / "specimens"


def failing(path: Path, text: str) -> str:
    path.write_text(text)
    verdicts = check_file(path)
    assert verdicts.right is None and verdicts.status == 2 and not verdicts
    return str(verdicts[0].problem if verdicts.verdicts else verdicts.problem)


def test_every_failure_has_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    assert failing(path, "raise SystemExit(0)").startswith("code.py does not import: SystemExit")
    assert failing(path, "def area(r): return r").startswith(
        "code.py has no function that looks like a forward"
    )
    raising = "def forward(x, gamma, beta):\n    raise ValueError('no such luck')"
    assert failing(path, raising) == (
        "forward raised ValueError on x of shape (4, 3) (numpy, float64): no such luck"
    )
    assert failing(path, "def forward(x, gamma, beta): pass") == "forward returned None: not written yet."
    leaving = "import sys\ndef forward(x, gamma, beta):\n    sys.exit(0)"
    assert failing(path, leaving).startswith("forward raised SystemExit on x of shape (4, 3)")
    two = "def backward(dy, x, gamma): return dy, dy.sum(0)"
    assert failing(path, two).startswith("backward returned 2 values, expected dx, dgamma, dbeta")
    assert failing(path, "def backward(dy, cache): return dy").startswith(
        "backward asks for a cache, but no forward was given"
    )
    shape = "def forward(x, gamma, beta): return x.sum(0)"
    assert failing(path, shape) == ("forward returned y of shape (3,), expected (4, 3), the shape of x.")
    assert failing(path, "def forward(x): return 'text'").startswith("forward returned a str, expected y")
    assert str(check_file(tmp_path / "absent.py").problem).startswith("there is no file ")


@pytest.mark.parametrize(("name", "status"), [("nine_nodes", 0), ("the_source", 1), ("missing", 2)])
def test_the_command_exits_with_the_status(
    name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(SPECIMENS / f"{name}.py")]) == status
    out, err = capsys.readouterr()
    assert ("xhat check: missing.py: could not be judged: there is no file" in err) == (status == 2)
    assert ("variance path" in out) == (status == 1)


def test_json_holds_the_whole_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(SPECIMENS / "the_source.py"), "--json"]) == 1
    ((verdict,),) = (file["verdicts"] for file in json.loads(capsys.readouterr().out)["files"])
    assert verdict["status"] == 1 and verdict["mistakes"][0]["line"] == "variance-by-input"
    assert [row["output"] for row in verdict["rows"]] == ["y", "dx", "dgamma", "dbeta"]
    assert main(["check", "nowhere.py", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["status"] == 2


def test_output_of_the_file_is_not_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "chatty.py"
    path.write_text((SPECIMENS / "the_source.py").read_text() + "\nprint('hello')\n")
    main(["check", str(path), "--json"])
    json.loads(capsys.readouterr().out)


def test_pytest_shows_the_verdict_of_a_failed_assertion(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(SPECIMENS)!r})\nimport the_source, xhat.lens\n"
        "def test_mine():\n    assert xhat.lens.check(the_source.forward, the_source.backward)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_mine.py")],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert run.returncode == 1
    sentence = "forward and backward: wrong: N - 1 in one place and N in another: variance path [dx]."
    assert f"assert <{sentence}>" in run.stdout, run.stdout


@pytest.mark.parametrize("eps", ["nan", "inf", "-1"])
def test_an_invalid_eps_is_refused(eps: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(SPECIMENS / "the_source.py"), "--eps", eps]) == 2
    assert capsys.readouterr().err == (
        f"xhat check: eps is {float(eps)}, expected a finite number of at least 0.\n"
    )
