"""Statistics that a forward returns beside y: which they are, and whether they are right.

A returned spread may be the variance (with N or N - 1), its root, or rstd: it is read as what it equals.
"""

import numpy as np

from xhat.lens.checker import reference as computation
from xhat.lens.checker.probes import Array, Probe
from xhat.lens.checker.reference import EXACT, Forward, Knobs
from xhat.lens.checker.runner import Seen
from xhat.lens.checker.verdict import Row

__all__ = ["judge"]


def _readings(name: str, p: Probe, f: Forward, correction: int) -> dict[str, Array]:
    """What a statistic of this name can be."""
    if name == "mean":
        return {"": f.mu}
    other = f.var * ((p.count() - correction) / (p.count() - (1 - correction)))
    unbiased, biased = (other, f.var) if correction == 0 else (f.var, other)
    return {
        "with N": biased,
        "with N - 1": unbiased,
        "it is rstd": f.rstd,
        "it is sqrt(var + eps)": 1 / f.rstd,
        "it is sqrt(var)": np.sqrt(f.var),
        "it is var + eps": f.var + p.eps,
    }


def judge(
    probes: tuple[Probe, ...], seen: list[Seen], correction: int, knobs: Knobs, names: str, tolerance: float
) -> tuple[list[Row], list[str]]:
    """Rows for the returned mean and variance; sentences for what has no reading. `names`: the forward's mistakes."""
    rows: list[Row] = []
    unnamed: list[str] = []
    for name in ("mean", "var"):
        if not all(name in s.extra for s in seen):
            continue
        after = [s.extra[name] for s in seen]
        right, mistaken = (_read(name, probes, after, correction, k, tolerance) for k in (EXACT, knobs))
        if right is not None:
            rows.append(Row(f"returned {name}", True, None, right))
        elif mistaken is not None:
            rows.append(Row(f"returned {name}", False, None, names))
        elif all(s.named for s in seen):
            rows.append(Row(f"returned {name}", False, None, "no known mistake explains it"))
            unnamed.append(f"the returned {name} is no statistic of the batch")
    return rows, unnamed


def _read(
    name: str, probes: tuple[Probe, ...], seen: list[Array], correction: int, knobs: Knobs, tolerance: float
) -> str | None:
    """The reading that equals what was returned on every probe."""
    options = [_readings(name, p, computation.forward(p, correction, knobs), correction) for p in probes]
    for reading in options[0]:
        pairs = [(o[reading].ravel(), s.ravel()) for o, s in zip(options, seen, strict=True)]
        if all(a.size == b.size and np.abs(a - b).max() <= tolerance * np.abs(a).max() for a, b in pairs):
            return reading
    return None
