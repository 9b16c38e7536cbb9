"""tools/same_digests.py: it is what says that two processors, or two compilers, give the same bits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent.parent / "tools" / "same_digests.py"


@pytest.mark.parametrize(
    ("other", "status", "said"),
    [
        ({"a": ["1", 0.5], "b": ["2", None]}, 0, "2 results, 0 differ\n"),
        ({"a": ["1", None], "b": ["3", None]}, 1, "2 results, 1 differ\nb\n"),
        ({"a": ["1", None]}, 1, "2 results, 1 differ\nb\n"),
        ({"a": ["1", None], "b": ["2", None], "c": ["4", None]}, 1, "3 results, 1 differ\nc\n"),
    ],
    ids=["the same", "another digest", "a case that is missing", "a case more"],
)
def test_what_differs_is_named(
    other: dict[str, list[object]], status: int, said: str, tmp_path: Path
) -> None:
    files = [tmp_path / "here.json", tmp_path / "there.json"]
    for file, found in zip(files, ({"a": ["1", None], "b": ["2", None]}, other), strict=True):
        file.write_text(json.dumps({"isa": file.stem, "found": found}))
    ended = subprocess.run([sys.executable, PROGRAM, *files], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (status, f"here (here), there (there): {said}")


def test_two_empty_surveys_do_not_agree(tmp_path: Path) -> None:
    file = tmp_path / "empty.json"
    file.write_text(json.dumps({"isa": "none", "found": {}}))
    assert subprocess.run([sys.executable, PROGRAM, file, file], check=False).returncode == 1
