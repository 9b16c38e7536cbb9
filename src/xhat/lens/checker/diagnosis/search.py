"""Finds the smallest sets of mistakes that explain the observed outputs on all probes.

A set explains an output if its prediction agrees with the output on all probes to rounding. All explaining sets of
the smallest size are returned, since the numbers do not distinguish them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import numpy as np

from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.conventions import PLAIN, Convention
from xhat.lens.checker.expected.probes import Array, Probe, probes
from xhat.lens.checker.expected.steps import CLOSED, Backward, Formulation, Forward
from xhat.lens.checker.faults import EXCHANGED, Mistake, sets_of, with_faults

__all__ = ["BACKWARD", "LIMIT", "Explanation", "Names", "Predictor", "flat", "predictor_for"]

LIMIT = 2  # mistakes in one output
BACKWARD = ("dx", "dgamma", "dbeta")
Names = frozenset[str]
Mistakes = tuple[Mistake, ...]
_ALTERNATIVES = 40  # considered for one output: many sets fit 16-bit outputs
_UNDEFINED = 1e6  # replaces NaN and infinity, so that undefined values compare equal


def flat(arrays: Iterable[Array]) -> Array:
    """Arrays as one vector of finite numbers."""
    joined = np.concatenate([np.asarray(a, dtype=np.float64).ravel() for a in arrays])
    return np.where(np.isfinite(joined), joined, _UNDEFINED)


@dataclass(frozen=True)
class Explanation:
    """Mistakes of the forward, the formulation of the backward, and the sets that explain each output of it."""

    correction: int
    forward: Mistakes
    formulation: Formulation
    outputs: dict[str, tuple[Names, ...]]  # empty: not explained

    @cached_property
    def unions(self) -> list[Names]:
        """All smallest sets of names that explain every output with an explanation."""
        own = frozenset(m.name for m in self.forward)
        choices = [sets[:_ALTERNATIVES] for sets in self.outputs.values() if sets]
        unions = [own.union(*choice) for choice in product(*choices)]
        least = min(map(len, unions))
        return list(dict.fromkeys(union for union in unions if len(union) == least))

    @cached_property
    def cost(self) -> tuple[int, int]:
        """The number of unexplained outputs, then the number of mistakes."""
        return sum(not sets for sets in self.outputs.values()), len(self.unions[0])


class Predictor:
    """Predicts and caches the outputs of sets of mistakes on the probes of one layout."""

    def __init__(self, batch: tuple[Probe, ...], correction: int, convention: Convention = PLAIN) -> None:
        self._raw = batch
        self.probes = tuple(convention.scaled(p) for p in batch)
        self.correction = correction
        self.convention = convention
        self.traits = batch[0].traits
        self._forwards: dict[Mistakes, list[Forward]] = {}
        self._scales: dict[str, float] = {}
        self._tables: dict[tuple[object, ...], tuple[list[Mistakes], list[Array], Array, Array]] = {}

    def forwards(self, mistakes: Mistakes = ()) -> list[Forward]:
        if mistakes not in self._forwards:
            faults = with_faults(mistakes)
            plain = (reference.forward(p, self.correction, faults) for p in self.probes)
            self._forwards[mistakes] = [self.convention.activated(f) for f in plain]
        return self._forwards[mistakes]

    def backwards(
        self,
        forward: Mistakes = (),
        formulation: Formulation = CLOSED,
        mistakes: Mistakes = (),
        only: str | None = None,
    ) -> list[Backward]:
        faults, of_forward = with_faults(mistakes), with_faults(forward)
        found = []
        for raw, p, f in zip(self._raw, self.probes, self.forwards(forward), strict=True):
            inner = self.convention.inner(p, f, of_forward)
            b = reference.backward(inner, f, self.correction, faults, formulation, of_forward, only)
            found.append(self.convention.outer(raw, b))
        return found

    def scale(self, output: str) -> float:
        """The largest magnitude of the terms of an output, relative to which its errors are measured."""
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

    def predict(self, output: str, forward: Mistakes, formulation: Formulation, mistakes: Mistakes) -> Array:
        """One output on all probes, as one vector."""
        if output in BACKWARD:
            return flat(getattr(b, output) for b in self.backwards(forward, formulation, mistakes, output))
        return flat(getattr(f, output) for f in self.forwards(forward + mistakes))

    def _table(
        self, output: str, size: int, forward: Mistakes, formulation: Formulation
    ) -> tuple[list[Mistakes], list[Array], Array, Array]:
        """All sets of a size, their predictions, and the indices and the matrix of predictions as long as the first."""
        key = (output, size, forward, formulation)
        if key not in self._tables:
            sets = sets_of(output, size, self.traits)
            with np.errstate(all="ignore"):
                predicted = [self.predict(output, forward, formulation, chosen) for chosen in sets]
            width = len(predicted[0]) if predicted else 0
            rows = np.array([i for i, v in enumerate(predicted) if len(v) == width], dtype=int)
            matrix = np.array([predicted[i] for i in rows]) if len(rows) else np.empty((0, width))
            self._tables[key] = (sets, predicted, rows, matrix)
        return self._tables[key]

    def explain(
        self,
        output: str,
        observed: Array,
        tolerance: float,
        limit: int,
        forward: Mistakes = (),
        formulation: Formulation = CLOSED,
    ) -> list[Mistakes]:
        """All smallest sets of at most `limit` mistakes whose prediction agrees; an empty list if there is none."""
        if np.mean(observed == _UNDEFINED) > 0.5:  # too few numbers to distinguish mistakes
            return []
        # Relative to an exact output, a tiny one would agree with 0: bound the tolerance by its own size too.
        observed_size = 100 * float(np.abs(observed).max())
        base = self.scale(output)
        for size in range(limit + 1):
            sets, predicted, rows, matrix = self._table(output, size, forward, formulation)
            near: set[int] = set()
            if matrix.shape[1] == len(observed) and len(matrix):
                far = np.abs(matrix - observed).max(axis=1)
                near = set(
                    rows[
                        far <= tolerance * np.minimum(observed_size, np.maximum(base, _size(matrix)))
                    ].tolist()
                )
            odd = set(range(len(sets))) - set(rows.tolist())
            near |= {i for i in odd if _agrees(predicted[i], observed, tolerance, min(base, observed_size))}
            if near:
                return [sets[i] for i in sorted(near)]
        return []

    def explain_backward(
        self,
        observed: dict[str, Array],
        tolerance: float,
        limit: int,
        forward: Mistakes,
        formulation: Formulation,
    ) -> dict[str, tuple[Names, ...]]:
        """The sets that explain each output of the backward, given the mistakes of its forward."""
        found = {
            output: tuple(
                dict.fromkeys(
                    frozenset(m.name for m in chosen)
                    for chosen in self.explain(output, values, tolerance, limit, forward, formulation)
                )
            )
            for output, values in observed.items()
        }
        both = [found.get(output, ()) for output in ("dgamma", "dbeta")]
        if not all(any(EXCHANGED in names for names in sets) for sets in both):
            found = {o: tuple(n for n in sets if EXCHANGED not in n) for o, sets in found.items()}
        return found


def _size(values: Array) -> Array:
    """The largest defined magnitude of each row."""
    return np.asarray(np.where(values == _UNDEFINED, 0.0, np.abs(values)).max(axis=-1), dtype=np.float64)


def _agrees(predicted: Array, observed: Array, tolerance: float, base: float) -> bool:
    if len(predicted) != len(observed):
        return False
    return bool(np.abs(predicted - observed).max() <= tolerance * max(base, float(_size(predicted))))


@lru_cache(maxsize=64)
def predictor_for(
    layout: str,
    dtype: str,
    eps: float,
    affine: bool | str,
    correction: int,
    unit: float | None = None,
    convention: Convention = PLAIN,
) -> Predictor:
    """The predictor of one layout and dtype. It does not depend on the code under test, so it is cached."""
    return Predictor(probes(layout, dtype, eps, affine, unit), correction, convention)
