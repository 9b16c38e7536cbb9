"""A mistake as knobs of the exact computation, and what it means to make several at once.

No arithmetic lives here, and no mistake: `catalogue` lists them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from xhat.lens.checker.reference import Knobs

__all__ = ["Mistake", "compatible", "entries", "turned"]

_FORWARD = {field.name for field in fields(Knobs)[:12]}


@dataclass(frozen=True)
class Mistake:
    """One way of making a mistake: its name, what to do about it, where to read, and the knobs it turns."""

    name: str
    remedy: str
    line: str
    turns: tuple[tuple[str, Any], ...]
    only: str = ""  # possible "with positions" beside batch and channel only, or on a "square" batch

    @property
    def touches(self) -> frozenset[str]:
        """The outputs it changes by itself (a forward mistake also changes what the backward finds)."""
        return frozenset(output for knob, _ in self.turns for output in _outputs(knob))


def _outputs(knob: str) -> tuple[str, ...]:
    if knob in _FORWARD:
        return ("y",)
    if knob.startswith("backward_"):
        return ("dx", "dgamma")
    return (knob.split("_")[0],) if knob.startswith(("dgamma_", "dbeta_")) else ("dx",)


def entries(name: str, line: str, remedy: str, *ways: dict[str, Any], only: str = "") -> Iterator[Mistake]:
    """One mistake with its ways of making it."""
    for way in ways:
        yield Mistake(name, remedy, line, tuple(way.items()), only)


def compatible(mistakes: tuple[Mistake, ...]) -> bool:
    """Mistakes can be made together when no two of them turn the same knob."""
    knobs = [knob for mistake in mistakes for knob, _ in mistake.turns]
    return len(set(knobs)) == len(knobs)


def turned(mistakes: tuple[Mistake, ...]) -> Knobs:
    """The exact computation with these mistakes made in it."""
    return Knobs(**{knob: value for mistake in mistakes for knob, value in mistake.turns})
