"""docs/support.md and docs/cite.md name the versions that the settings of the project have."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SUPPORT = (ROOT / "docs" / "support.md").read_text("utf-8")
PINNED = dict(
    re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), flags=re.MULTILINE)
)
REQUIREMENTS = [*SETTINGS["dependencies"], *chain(*SETTINGS["optional-dependencies"].values())]
ROWS = {
    "NumPy": "numpy",
    "PyTorch": "torch",
    "JAX": "jax",
    "Flax": "flax",
    "Equinox": "equinox",
    "Keras": "keras",
    "ml_dtypes": "ml_dtypes",
}


@pytest.mark.parametrize("row", ROWS)
def test_a_library_has_the_version_that_is_needed_and_the_one_that_is_tested(row: str) -> None:
    (line,) = re.findall(rf"^\| {row}(?:,.*| )\|.*$", SUPPORT, flags=re.MULTILINE)
    _, needed, tested, _ = (cell.strip() for cell in line.strip("|").split("|"))
    lowest = [found[1] for text in REQUIREMENTS if (found := re.match(rf"{ROWS[row]}>=([\d.]+)", text))]
    assert needed in lowest
    assert PINNED[ROWS[row].replace("_", "-")] in tested


def test_the_citation_has_this_version() -> None:
    cite = (ROOT / "docs" / "cite.md").read_text("utf-8")
    assert f"version = {{{SETTINGS['version']}}}" in cite
