"""Mistakes of evaluation, where running statistics normalize: (name, display, remedy, alternative ways as faults)."""

from typing import Any

__all__ = ["EVALUATION", "NORMALIZED"]

# The faults of `reference` that make a training forward the exact evaluation.
NORMALIZED = {"mean_from": "running", "variance_from": "running"}

_ROOT = "In evaluation too rstd = (running_var + eps)^(-1/2), as in training."
_SCALE = "In evaluation too y = gamma xhat + beta."

EVALUATION: tuple[tuple[str, str, str, tuple[dict[str, Any], ...]], ...] = (
    ("eps missing in evaluation", "normalization", _ROOT, ({"eps": "missing"},)),
    ("eps outside the root in evaluation", "normalization", _ROOT, ({"eps": "outside"},)),
    ("square root missing in evaluation", "normalization", _ROOT, ({"root": 1.0},)),
    ("power of rstd wrong in evaluation", "normalization", _ROOT, ({"root": -0.5}, {"root": -1.0})),
    ("gamma forgotten in evaluation", "scale-and-shift", _SCALE, ({"gamma": False},)),
    ("beta forgotten in evaluation", "scale-and-shift", _SCALE, ({"beta": False},)),
    (
        "batch statistics used in evaluation",
        "normalization",
        "In evaluation mu and var are the running ones, so that an output does not depend on its batch.",
        (
            {"mean_from": "batch", "variance_from": "batch"},
            {"mean_from": "batch"},
            {"variance_from": "batch"},
        ),
    ),
)
