"""The catalogue: every mistake that the checker can name, as faults in the exact computation.

No arithmetic lives here; `reference` computes with faults. The tables are in `forward`, `backward`, `sums` and
`evaluation`. A mistake that can be made in several ways has several entries of one name.
"""

from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import combinations
from typing import Any

from xhat.lens.checker.expected.steps import Faults
from xhat.lens.checker.faults.backward import BACKWARD, EXCHANGED
from xhat.lens.checker.faults.evaluation import EVALUATION
from xhat.lens.checker.faults.forward import FORWARD
from xhat.lens.checker.faults.sums import SUMS

__all__ = [
    "CATALOGUE",
    "EXCHANGED",
    "SQUARE",
    "TITLES",
    "WITH_POSITIONS",
    "Mistake",
    "compatible",
    "sets_of",
    "with_faults",
]

# Properties of a batch that some mistakes need to show: spatial axes, or equal lengths of two axes.
WITH_POSITIONS, SQUARE = "with positions", "square"

_ON_POSITIONS = {"batch", "rows", "columns", "instance", "layer", "reshaped"}
_FORWARD_FAULTS = {field.name for field in fields(Faults)[:14]}


@dataclass(frozen=True)
class Mistake:
    """One way to make a mistake: its name, the remedy, the display of the source to read, and the faults it sets."""

    name: str
    line: str
    remedy: str
    faults: tuple[tuple[str, Any], ...]

    @cached_property
    def needs(self) -> str:
        """The property that a batch must have for this mistake to show, or an empty string."""
        values = [value for _, value in self.faults]
        return WITH_POSITIONS if _ON_POSITIONS & {*values} else SQUARE if "crossed" in values else ""

    @cached_property
    def touches(self) -> frozenset[str]:
        """The outputs it changes directly. (A forward mistake also changes the statistics that the backward uses.)"""
        return frozenset(output for fault, _ in self.faults for output in _outputs(fault))


def _outputs(fault: str) -> tuple[str, ...]:
    if fault in _FORWARD_FAULTS:
        return ("y",)
    if fault == "backward_grouping":
        return ("dx", "dgamma", "dbeta")
    if fault.startswith("backward_"):
        return ("dx", "dgamma")
    return (fault.split("_")[0],) if fault.startswith(("dgamma_", "dbeta_")) else ("dx",)


CATALOGUE: tuple[Mistake, ...] = tuple(
    Mistake(name, line, remedy, tuple(faults.items()))
    for name, line, remedy, ways in (*FORWARD, *BACKWARD, *SUMS)
    for faults in ways
)

# Mistakes that no fault makes: in required conventions, in running statistics, in rounding.
_OTHERS = {
    "variance with the other correction": (
        "variance",
        "var = sum((x - mu)^2) / (m - c): another c was asked for.",
    ),
    "momentum reversed": (
        "mean",
        "running = (1 - k) running + k batch with a small k (0.1), or with momentum 0.9: 0.9 running + 0.1 batch.",
    ),
    "running variance with the other correction": (
        "variance",
        "The running variance has the correction that the convention asks for (PyTorch: N - 1; Keras, Flax: N).",
    ),
    "the eps given is ignored": (
        "normalization",
        "rstd = (var + eps)^(-1/2) with the eps that was given: the code has another one of its own.",
    ),
    "another eps in the backward": (
        "path-2",
        "The backward needs the rstd of the forward, (var + eps)^(-1/2), with the same eps.",
    ),
    "running statistics never stored": (
        "mean",
        "Training stores (1 - k) running + k batch: in place, in the options, in the layer, or by returning it.",
    ),
    "standard deviation stored as the running variance": (
        "variance",
        "The running variance averages var = sum((x - mu)^2) / m, before the root.",
    ),
    "running statistics updated in evaluation": (
        "mean",
        "Evaluation uses the running statistics and leaves them as they are.",
    ),
    **{name: (line, remedy) for name, line, remedy, _ in EVALUATION},
    "float16 accumulation": (
        "mean",
        "Sum in float32 or wider: float16 ends at 65504 and keeps three digits.",
    ),
}

# name -> (display, remedy)
TITLES = {m.name: (m.line, m.remedy) for m in CATALOGUE} | _OTHERS


def compatible(mistakes: tuple[Mistake, ...]) -> bool:
    """Whether the mistakes can be made together: no two of them set the same fault."""
    names = [name for mistake in mistakes for name, _ in mistake.faults]
    return len(set(names)) == len(names)


@cache
def with_faults(mistakes: tuple[Mistake, ...]) -> Faults:
    """The faults of all these mistakes."""
    return Faults(**{name: value for mistake in mistakes for name, value in mistake.faults})


@cache
def sets_of(output: str, size: int, traits: frozenset[str]) -> list[tuple[Mistake, ...]]:
    """Every compatible set of `size` mistakes that change this output on a batch with these properties."""
    touching = [m for m in CATALOGUE if output in m.touches and (not m.needs or m.needs in traits)]
    return [chosen for chosen in combinations(touching, size) if compatible(chosen)]
