"""Every example runs, shows something, and stays short."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)  # Keras's
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_is_short(path, capsys):
    for package in ("torch", "flax", "keras", "optax"):
        if re.search(rf"^(import|from) {package}\b", path.read_text(), flags=re.MULTILINE):
            pytest.importorskip(package)
    runpy.run_path(str(path))
    assert capsys.readouterr().out
    assert len(path.read_text().splitlines()) <= 60


def test_examples_are_numbered_from_1():
    assert [path.name[:3] for path in EXAMPLES] == [f"{i:02}_" for i in range(1, len(EXAMPLES) + 1)]
    assert EXAMPLES
