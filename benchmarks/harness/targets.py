"""A target: the case that it was measured on, its limit, and the figure. Limits are not moved: a miss is a miss."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from benchmarks.harness.rows import Race

__all__ = ["Targets", "Verdict", "judged"]


class Verdict(NamedTuple):
    """A target, the case that it was measured on, the limit, and the measured figure."""

    target: str
    case: str
    limit: float
    measured: float

    @property
    def reached(self) -> bool:
        """At most the limit."""
        return self.measured <= self.limit


Targets = Callable[[Race], Iterator[Verdict]]


def judged(races: Iterable[Race], targets: Targets) -> list[Verdict]:
    """All targets on all cases that were measured, target by target."""
    found = [verdict for race in races for verdict in targets(race)]
    order = list(dict.fromkeys(verdict.target for verdict in found))
    return sorted(found, key=lambda verdict: order.index(verdict.target))
