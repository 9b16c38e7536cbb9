"""The demo's third part: three ways to damage a network, what the doctor names, and what the treatment is worth."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("sklearn")

from rich.console import Console

from xhat.demo import damaged, show, training


@pytest.fixture(scope="module")
def digits() -> training.Digits:
    """The real ones."""
    return training.load(0)


def test_batches_are_sorted_by_class_and_hold_each_digit_once(digits: training.Digits) -> None:
    order = damaged.sorted_batches(digits.labels, 3)
    epoch = [next(order) for _ in range(len(digits.x) // damaged.SORTED)]
    assert max(len(set(digits.labels[rows].tolist())) for rows in epoch) == 2
    rows = np.concatenate(epoch)
    assert len(set(rows.tolist())) == len(rows) > 0.95 * len(digits.x)
    assert {int(digits.labels[rows[0]]) for rows in epoch} == set(range(10))


def test_the_doctor_names_each_damage_and_the_treatment_repairs_it(
    digits: training.Digits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[damaged.Case] = []
    cases = damaged.cases
    monkeypatch.setattr(damaged, "cases", lambda *a, **b: (found.append(c) or c for c in cases(*a, **b)))
    text = io.StringIO()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    show._damaged_networks(Console(file=text, highlight=False, width=80), digits, tmp_path, 40, 0)
    assert torch.equal(torch.rand(3), expected)
    causes = ["statistics-never-updated", "statistics-not-converged", "batches-not-alike"]
    assert [case.diagnosis.findings[0].cause for case in found] == causes
    assert [bool(case.treated) for case in found] == [True, True, False]
    assert max(case.before for case in found) < 0.6
    assert min(case.after - case.before for case in found) > 0.25
    shown = text.getvalue()
    assert "160/160" in shown
    for case in found:
        (row,) = (line for line in shown.splitlines() if line.strip().startswith(case.name))
        assert row.split()[-4:-1] == [
            case.diagnosis.findings[0].cause,
            f"{case.before:.1%}",
            f"{case.after:.1%}",
        ]
    lines = [line for line in shown.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert "statistics-never-updated" in (tmp_path / "doctor.html").read_text("utf-8")
