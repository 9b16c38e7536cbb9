"""The model of docs/scaling.md, and the tables: what the benchmark makes of its rows."""

import pytest

from benchmarks.harness.rows import RESULTS_FOLDER, ROOT, Row, read
from benchmarks.sync.model import fit, predicted
from benchmarks.sync.tables import tables


def measured(latency: float, kilobyte: float) -> list[Row]:
    """Rows of a machine that is as the model says."""
    rows = []
    for ranks in (2, 4):
        for n in (1000, 50_000, 2_000_000):
            gather = (ranks - 1) * (latency + n / 1e3 * kilobyte)
            reduce = 2 * (ranks - 1) * (latency + n / ranks / 1e3 * kilobyte)
            for name, t in (("exchange", gather), ("all-gather", gather), ("all-reduce", reduce)):
                rows.append(Row(f"{n} bytes", "collective", name, n, t, t, t, ranks=ranks))
    return rows


@pytest.mark.parametrize("contestant", ["exchange", "all-gather", "all-reduce"])
def test_the_fit_finds_latency_and_bandwidth(contestant: str) -> None:
    latency, kilobyte, misfit = fit(measured(70.0, 0.25), contestant)
    assert latency == pytest.approx(70) and kilobyte == pytest.approx(0.25) and misfit == pytest.approx(1)


def test_a_machine_that_is_otherwise_does_not_fit() -> None:
    rows = [r._replace(p20=r.p20 * 3) if r.ranks == 4 else r for r in measured(70.0, 0.25)]
    assert fit(rows, "exchange")[2] > 1.5


def test_a_prediction_by_hand() -> None:
    """Two layers of 10 channels on 3 ranks: frames of 128 + 8 * 23 and 128 + 8 * 20 bytes, each twice."""
    expected = 2 * 2 * ((100 + 0.312 * 0.5) + (100 + 0.288 * 0.5))
    assert predicted(100.0, 0.5, "exchange", 3, 10, 2) == pytest.approx(expected)


def test_the_document_holds_the_tables_of_the_results() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    (path,) = RESULTS_FOLDER.glob("*-sync.csv")
    for name, table in tables(*read(path)).items():
        assert f"<!-- {name}:start -->" in page
        assert table in page, name
