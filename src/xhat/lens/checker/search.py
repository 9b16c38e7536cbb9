"""From numbers to mistakes: the smallest sets of mistakes that explain every observed output on every probe.

Nothing is guessed: a set explains an output when its prediction agrees to rounding on all probes, and all the sets
of the smallest size that do are returned, since the numbers can't tell them apart.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from xhat.lens.checker import reference as computation
from xhat.lens.checker.faults import sets_of
from xhat.lens.checker.faults.mistakes import Mistake, turned
from xhat.lens.checker.probes import Array, Probe, probes
from xhat.lens.checker.reference import CLOSED, Backward, Forward, Way

__all__ = ["BACKWARD", "LIMIT", "Explanation", "Model", "Names", "flat", "model"]

LIMIT = 2  # mistakes in one output
BACKWARD = ("dx", "dgamma", "dbeta")
Names = frozenset[str]
Mistakes = tuple[Mistake, ...]
_ALTERNATIVES = 40  # of one output, in 16 bits many sets fit


_UNDEFINED = 1e6  # stands for a value that is not finite, so that it agrees with another


def flat(arrays: Iterable[Array]) -> Array:
    """Arrays as one vector of finite numbers."""
    joined = np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays])
    return np.where(np.isfinite(joined), joined, _UNDEFINED)


@dataclass(frozen=True)
class Explanation:
    """A forward and backward that predict every output: mistakes of the forward, the way the
    backward is written, and for each output of the backward the sets of its own mistakes."""

    correction: int
    forward: Mistakes
    way: Way
    outputs: dict[str, tuple[Names, ...]]  # an empty tuple: not explained

    @cached_property
    def unions(self) -> list[Names]:
        """All the smallest sets of names that explain every output that has an explanation."""
        own = frozenset(m.name for m in self.forward)
        choices = [sets[:_ALTERNATIVES] for sets in self.outputs.values() if sets]
        unions = [own.union(*choice) for choice in product(*choices)]
        least = min(map(len, unions))
        return list(dict.fromkeys(union for union in unions if len(union) == least))

    @cached_property
    def cost(self) -> tuple[int, int]:
        """Outputs without an explanation, then mistakes."""
        return sum(not sets for sets in self.outputs.values()), len(self.unions[0])


class Model:
    """What each set of mistakes predicts on the probes of one layout, remembered."""

    def __init__(self, batch: tuple[Probe, ...], correction: int) -> None:
        self.probes = batch
        self.correction = correction
        self.places = batch[0].places
        self._forwards: dict[Mistakes, list[Forward]] = {}
        self._scales: dict[str, float] = {}
        self._tables: dict[tuple[object, ...], tuple[list[Mistakes], list[Array], Array, Array]] = {}

    def forwards(self, mistakes: Mistakes = ()) -> list[Forward]:
        if mistakes not in self._forwards:
            knobs = turned(mistakes)
            self._forwards[mistakes] = [computation.forward(p, self.correction, knobs) for p in self.probes]
        return self._forwards[mistakes]

    def backwards(self, forward: Mistakes = (), way: Way = CLOSED, mistakes: Mistakes = ()) -> list[Backward]:
        knobs = turned(mistakes)
        return [
            computation.backward(p, f, self.correction, knobs, way, turned(forward))
            for p, f in zip(self.probes, self.forwards(forward), strict=True)
        ]

    def scale(self, output: str) -> float:
        """The size of what is added up in an output: the measure of its rounding errors."""
        if output not in self._scales:
            self._scales[output] = self._scale(output)
        return self._scales[output]

    def _scale(self, output: str) -> float:
        if output in ("dx", "dgamma", "dbeta"):
            exact = self.backwards()
            parts = {
                "dx": [part for b in exact for part in (b.direct, b.mean, b.variance)],
                "dgamma": [p.dy * f.xhat * 2 for p, f in zip(self.probes, self.forwards(), strict=True)],
                "dbeta": [p.dy * 2 for p in self.probes],
            }[output]
            return max(float(np.abs(part).max()) for part in parts)
        return max(float(np.abs(getattr(f, output)).max()) for f in self.forwards())

    def predict(self, output: str, forward: Mistakes, way: Way, mistakes: Mistakes) -> Array:
        """One output on all probes, as one vector."""
        if output in BACKWARD:
            return flat(getattr(b, output) for b in self.backwards(forward, way, mistakes))
        return flat(getattr(f, output) for f in self.forwards(forward + mistakes))

    def _table(
        self, output: str, size: int, forward: Mistakes, way: Way
    ) -> tuple[list[Mistakes], list[Array], Array, Array]:
        """All sets of a size, their predictions, and those as long as the first as one matrix with its rows."""
        key = (output, size, forward, way)
        if key not in self._tables:
            sets = sets_of(output, size, self.places)
            with np.errstate(all="ignore"):
                predicted = [self.predict(output, forward, way, chosen) for chosen in sets]
            width = len(predicted[0]) if predicted else 0
            rows = np.array([i for i, v in enumerate(predicted) if len(v) == width], dtype=int)
            matrix = np.array([predicted[i] for i in rows]) if len(rows) else np.empty((0, width))
            self._tables[key] = (sets, predicted, rows, matrix)
        return self._tables[key]

    def explain(
        self,
        output: str,
        seen: Array,
        tolerance: float,
        limit: int,
        forward: Mistakes = (),
        way: Way = CLOSED,
    ) -> list[Mistakes]:
        """All the smallest sets of at most `limit` mistakes that predict what was seen, or none."""
        if np.mean(seen == _UNDEFINED) > 0.5:  # nothing left to tell mistakes by
            return []
        # what is far smaller than an exact output can't be told from nothing by the errors of that output
        seen_size = 100 * float(np.abs(seen).max())
        base = self.scale(output)
        for size in range(limit + 1):
            sets, predicted, rows, matrix = self._table(output, size, forward, way)
            near: set[int] = set()
            if matrix.shape[1] == len(seen) and len(matrix):
                far = np.abs(matrix - seen).max(axis=1)
                near = set(
                    rows[far <= tolerance * np.minimum(seen_size, np.maximum(base, _size(matrix)))].tolist()
                )
            odd = set(range(len(sets))) - set(rows.tolist())
            near |= {i for i in odd if _agrees(predicted[i], seen, tolerance, min(base, seen_size))}
            if near:
                return [sets[i] for i in sorted(near)]
        return []

    def explain_backward(
        self, seen: dict[str, Array], tolerance: float, limit: int, forward: Mistakes, way: Way
    ) -> dict[str, tuple[Names, ...]]:
        """The backward of one forward: each of its outputs explained by itself."""
        return {
            output: tuple(
                dict.fromkeys(
                    frozenset(m.name for m in chosen)
                    for chosen in self.explain(output, values, tolerance, limit, forward, way)
                )
            )
            for output, values in seen.items()
        }


def _size(values: Array) -> Array:
    """The largest magnitude of each row, of what is defined."""
    return np.asarray(np.where(values == _UNDEFINED, 0.0, np.abs(values)).max(axis=-1), dtype=np.float64)


def _agrees(predicted: Array, seen: Array, tolerance: float, base: float) -> bool:
    if len(predicted) != len(seen):
        return False
    return bool(np.abs(predicted - seen).max() <= tolerance * max(base, float(_size(predicted))))


@lru_cache(maxsize=64)
def model(layout: str, dtype: str, eps: float, affine: bool, correction: int) -> Model:
    """The model of one layout and dtype; the same for every code under test."""
    return Model(probes(layout, dtype, eps, affine), correction)
