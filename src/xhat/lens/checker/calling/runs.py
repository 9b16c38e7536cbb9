"""What a run of the code under test is given, and what it gives: arrays, mode, options and results.

Nothing runs here; `runner` does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from xhat.lens.checker.calling import arrays
from xhat.lens.checker.expected.probes import Array

__all__ = ["TRAINING", "ArraySpec", "Mode", "Options", "RunResult", "array_specs"]


@dataclass(frozen=True)
class ArraySpec:
    """The arrays of a run: package, dtype, layout, and the shapes of parameters and of statistics.

    "flat" arrays have the shape of the channels, "wide" ones broadcast against x.
    """

    kind: str
    dtype: str
    layout: str
    parameters: str = "flat"
    statistics: str = "flat"
    running: str = "flat"
    memory: str = "contiguous"  # of x and dy: see `arrays.laid_out`


def array_specs(
    kinds: tuple[str, ...], dtypes: tuple[str, ...], layouts: tuple[str, ...]
) -> Iterator[ArraySpec]:
    """All specs to try, the most usual ones first."""
    styles = (("flat", "flat", "flat"), ("wide", "wide", "wide"), ("flat", "wide", "flat"))
    for layout, kind, dtype, style in product(layouts, kinds, dtypes, styles):
        if arrays.holds(kind, dtype):
            yield ArraySpec(kind, dtype, layout, *style)


@dataclass
class RunResult:
    """The results of one run; ``running`` holds updated running statistics, and ``extra`` other returned ones.

    unjudged: the outputs that the code was to compute and did not, with the reason. read: the options that it read.
    """

    outputs: dict[str, Array] = field(default_factory=dict)
    running: dict[str, Array] = field(default_factory=dict)
    extra: dict[str, Array] = field(default_factory=dict)
    dtypes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    unjudged: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    named: bool = False  # whether the forward returned its statistics with names
    swappable: bool = False  # whether dgamma and dbeta were returned without names

    def swapped(self) -> "RunResult":
        """The result with dgamma and dbeta exchanged."""
        outputs = self.outputs | {"dgamma": self.outputs["dbeta"], "dbeta": self.outputs["dgamma"]}
        note = "The backward returns dbeta before dgamma."
        return replace(self, outputs=outputs, notes=[*self.notes, note], swappable=False)


class Options(dict[str, Any]):
    """A dictionary of options that notes which of them were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)

    def setdefault(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().setdefault(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        self.read.add(name)
        return super().pop(name, *default)


@dataclass(frozen=True)
class Mode:
    """How a run is asked for: training, or evaluation with a word for it; whether a momentum is passed."""

    training: bool = True
    word: str = "train"
    momentum: bool = True
    gradients: bool = True


TRAINING = Mode()
