"""What the passes over the batches have found: scores by mode, and what each layer got. Nothing runs here."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from xhat.torch.doctor.graph import GraphNorm
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.signals import Gap, Signals, gap, signals
from xhat.torch.doctor.tap import Tap

__all__ = ["MODES", "Measured"]

Array = NDArray[np.float64]

MODES = ("evaluation", "batch", "pooled", "train")


@dataclass
class Measured:
    """What the passes found. Arrays have one value per batch, NaN where a mode could not run.

    losses     by mode; empty without a loss
    distances  by mode: of the outputs from evaluation's, relative to these
    to_batch   by mode: of the outputs from mode B's, relative to these
    halves     the distance of C's outputs from those with the moments of half of the batches
    taps       by mode (batch, train): one for each layer
    swapped    by path: the mean loss (or distance to B) with this layer's statistics replaced alone
    together   how many layers were replaced, and what that gave, while layers were added one by one
    trials     by the name of a remedy: the layers, and the scores with it
    feeds      by path: path and module of the linear layer or dropout that makes this layer's input
    graph      the batch norms of an exported graph
    group      the process group by name; counts: the batches of each of its ranks
    ranks      how many processes share the diagnosis
    differing  the layers whose statistics differ between them, and by how many deviations
    failures   by mode: why it did not run on some batches
    """

    model: nn.Module
    layers: list[Layer]
    was_training: bool
    optimizer: Any = None
    count: int = 0
    losses: dict[str, Array] = field(default_factory=dict)
    distances: dict[str, Array] = field(default_factory=dict)
    to_batch: dict[str, Array] = field(default_factory=dict)
    halves: float = float("nan")
    taps: dict[str, list[Tap]] = field(default_factory=dict)
    swapped: dict[str, float] = field(default_factory=dict)
    together: list[tuple[str, float]] = field(default_factory=list)
    untried: int = 0
    trials: dict[str, tuple[list[Layer], Array]] = field(default_factory=dict)
    feeds: dict[str, tuple[str, nn.Module]] = field(default_factory=dict)
    graph: list[GraphNorm] = field(default_factory=list)
    group: str = ""
    ranks: int = 1
    counts: list[int] = field(default_factory=list)
    differing: list[tuple[str, float]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    sketches: list[tuple[float, list[Array]] | None] = field(default_factory=list)  # of mode B
    _ran: dict[str, Any] = field(default_factory=dict)
    single_values: list[str] = field(default_factory=list)  # layers that had one value per channel

    @property
    def quantity(self) -> str:
        """What is compared."""
        return "loss" if self.losses else "distance"

    def scores(self, mode: str) -> Array:
        """The loss per batch, or else the distance of the outputs from mode B's: less is better."""
        return (self.losses or self.to_batch).get(mode, np.full(self.count, np.nan))

    def trial(self, name: str) -> Gap:
        """How much better evaluation is with this remedy."""
        scores = self.trials[name][1]
        return gap(self.scores("evaluation"), scores, self._ran["evaluation"] & ~np.isnan(scores))

    def gap(self, before: str, after: str) -> Gap:
        """How much better the one mode is than the other, over the batches on which both ran."""
        return gap(self.scores(before), self.scores(after), self._ran[before] & self._ran[after])

    def tap(self, layer: Layer, mode: str = "batch") -> Tap:
        """What this layer got in this mode."""
        return self.taps[mode][self.layers.index(layer)]

    def signals(self, layer: Layer) -> Signals:
        """The signals of this layer."""
        return signals(layer, self.tap(layer), self.tap(layer, "evaluation"))

    def mean(self, mode: str) -> float | None:
        """The mean loss or distance from evaluation, as the diagnosis reports it; None if the mode did not run."""
        values = (self.losses or self.distances).get(mode)
        if values is None or (np.isnan(values).all() and mode != "evaluation"):
            return None
        return float(np.mean(values[self.ran(mode)])) if self.ran(mode).any() else float("nan")

    def ran(self, mode: str) -> NDArray[np.bool_]:
        """The batches on which this mode ran."""
        found: NDArray[np.bool_] = self._ran[mode]
        return found
