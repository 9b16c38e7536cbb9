"""The catalogue: every mistake the checker can name, each once, as knobs of the exact computation.

No arithmetic lives here. A mistake with several ways of making it has several entries of one name; every mistake
has the display of the source (see `lens.source`) to read again, and the formula as it should be.
"""

from itertools import combinations

from xhat.lens.checker.faults.backward import backward_mistakes
from xhat.lens.checker.faults.forward import forward_mistakes
from xhat.lens.checker.faults.mistakes import Mistake, compatible

__all__ = ["CATALOGUE", "TITLES", "sets_of"]

CATALOGUE: tuple[Mistake, ...] = (*forward_mistakes(), *backward_mistakes())

# Mistakes that no knob makes: of conventions asked for, of running statistics, of rounding.
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
    "float16 accumulation": (
        "mean",
        "Sum in float32 or wider: float16 ends at 65504 and keeps three digits.",
    ),
}

# name -> (display, remedy)
TITLES = {m.name: (m.line, m.remedy) for m in CATALOGUE} | _OTHERS


def sets_of(output: str, size: int, places: frozenset[str]) -> list[tuple[Mistake, ...]]:
    """Every set of so many mistakes that touch an output and can be made together in such places."""
    touching = [m for m in CATALOGUE if output in m.touches and (not m.only or m.only in places)]
    return [chosen for chosen in combinations(touching, size) if compatible(chosen)]
