"""docs/tour.ipynb: it runs from its first cell to its last, and shows what its text says."""

import re
from pathlib import Path
from typing import Any

import pytest

TOUR = Path(__file__).parent.parent / "docs" / "tour.ipynb"
nbformat = pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The outputs of each cell by their kind; what is printed is "text/plain" too."""
    for package in ("ipykernel", "jinja2", "rich", "sympy", "torch"):
        pytest.importorskip(package)
    client = pytest.importorskip("nbclient").NotebookClient
    where = {"metadata": {"path": str(tmp_path_factory.mktemp("tour"))}}
    executed = client(nbformat.read(TOUR, as_version=4), timeout=300, resources=where).execute()
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    return [_kinds(cell.outputs) for cell in cells]


def _kinds(outputs: list[Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for output in outputs:
        for kind, text in output.get("data", {"text/plain": output.get("text", "")}).items():
            found[kind] = found.get(kind, "") + text
    return found


def texts_with(shown: list[dict[str, str]], words: str) -> list[str]:
    return [cell["text/plain"] for cell in shown if words in cell.get("text/plain", "")]


def test_the_numbers_are_those_of_a_computation_by_hand(shown: list[dict[str, str]]) -> None:
    """mu = 3, var = 4, xhat = (-1, -1, 1, 1), gamma rstd = 1; sum(dy) / 4 = 3 and sum(dy xhat) / 4 = 1.5."""
    (table,) = texts_with(shown, "direct   mean  variance    dx")
    rows = [[float(v) for v in re.findall(r"-?[\d.]+", line)] for line in table.splitlines()[1:]]
    assert rows == [[1, -3, 1.5, -0.5], [2, -3, 1.5, 0.5], [3, -3, -1.5, -1.5], [6, -3, -1.5, 1.5]]
    (measured,) = texts_with(shown, "measured")
    assert measured.count("[-0.5  0.5 -1.5  1.5]") == 2
    (energy,) = texts_with(shown, "energy")  # of 50: 36 along 1, 9 along xhat, and dx has 5
    assert [float(v) for v in re.findall(r"0\.\d+", energy)] == [0.72, 0.18, 0.1]


def test_the_equations_are_proved_and_refuted(shown: list[dict[str, str]]) -> None:
    assert len(texts_with(shown, "holds for correction=0: dL/dx_i")) == 1
    (refuted,) = texts_with(shown, "wrong: dL/dx_i")
    assert "the term -gamma / (N * sqrt(var + eps)) * sum_j(dL/dy_j) is missing" in refuted
    assert len(texts_with(shown, "holds: dvar/dmu = 0")) == 1


def test_the_mistake_and_the_cause_are_named(shown: list[dict[str, str]]) -> None:
    assert len(texts_with(shown, "dx      WRONG")) == 1
    assert texts_with(shown, "wrong: mean where a sum is needed: variance path [dx]")
    (diagnosis,) = texts_with(shown, "harmful: ")
    assert "harmful: statistics-not-converged" in diagnosis
    before, after = (float(v) for text in texts_with(shown, "accuracy") for v in re.findall(r"(\d+)%", text))
    assert before < 90 < 95 < after


def test_pages_are_shown(shown: list[dict[str, str]]) -> None:
    pages = [cell["text/html"] for cell in shown if "<iframe" in cell.get("text/html", "")]
    assert [re.findall(r"&lt;title&gt;(.*)&lt;/title&gt;", page) for page in pages] == [
        ["xhat report"],
        ["batchnorm_forward and batchnorm_backward: xhat check"],
    ]


def test_it_is_stored_without_outputs_and_its_links_lead_to_files() -> None:
    stored = nbformat.read(TOUR, as_version=4)
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert code and all(cell.outputs == [] and cell.execution_count is None for cell in code)
    links = [link for cell in stored.cells for link in re.findall(r"\]\(([^)]+)\)", cell.source)]
    assert len(links) >= 5 and all((TOUR.parent / link.partition("#")[0]).is_file() for link in links)
