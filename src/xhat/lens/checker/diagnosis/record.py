"""A diagnosis as data: what was found on one layout, while it is collected."""

from dataclasses import dataclass, field

from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.diagnosis.comparison import Comparison
from xhat.lens.checker.diagnosis.fit import Fit
from xhat.lens.checker.faults import TITLES
from xhat.lens.checker.verdict import FoundMistake, Row

__all__ = ["Diagnosis", "named"]


@dataclass
class Diagnosis:
    """Everything found on one layout."""

    runner: Runner
    fit: Fit
    rows: list[Row] = field(default_factory=list)
    mistakes: list[FoundMistake] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    conventions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    not_judged: list[str] = field(default_factory=list)
    tolerance: float = 0.0
    comparisons: list[Comparison] = field(default_factory=list)  # with what other conditions show

    @property
    def right(self) -> bool:
        return not self.mistakes and not self.unnamed

    @property
    def forward_right(self) -> bool:
        return all(row.right for row in self.rows if row.output == "y")


def named(name: str, *outputs: str) -> FoundMistake:
    """A mistake of the catalogue in these outputs."""
    line, remedy = TITLES[name]
    return FoundMistake((name,), outputs, line, remedy)
