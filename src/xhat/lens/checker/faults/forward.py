"""Mistakes of the forward pass, as knobs of the exact computation (see `catalogue`)."""

from collections.abc import Iterator

from xhat.lens.checker.faults.mistakes import Mistake
from xhat.lens.checker.faults.mistakes import entries as _entry

__all__ = ["forward_mistakes"]

# The running statistic as it came, or after the update: with momentum new or old, its variance with N or N - 1.
_KEPT = ("running", "new, N", "new, N - 1", "old, N", "old, N - 1")


def _statistics() -> Iterator[Mistake]:
    yield from _entry(
        "sum where a mean is needed: mu", "mean", "mu = sum(x) / m: divide by m.", {"mean_count": "1"}
    )
    yield from _entry(
        "sum where a mean is needed: var",
        "variance",
        "var = sum((x - mu)^2) / m: divide by m.",
        {"variance_count": "1"},
    )
    formula = "mu = sum(x) / m; N - 1 belongs to a variance only."
    yield from _entry("N - 1 in the mean", "mean", formula, {"mean_count": "m - 1"})
    yield from _entry(
        "mean not subtracted in the variance",
        "variance",
        "var = mean((x - mu)^2), not mean(x^2).",
        {"variance_about": "0"},
    )
    yield from _entry(  # seen where the mean is wrong too; alone, only rounding shows it
        "one-pass variance cancelling",
        "variance",
        "mean(x^2) - mu^2 loses every digit when |mu| is large: sum (x - mu)^2 in a second pass, or merge blocks.",
        {"variance_form": "one pass"},
    )


def _roots_and_scales() -> Iterator[Mistake]:
    eps = "rstd = (var + eps)^(-1/2): eps stands inside the root."
    yield from _entry("eps missing in the forward", "normalization", eps, {"eps": "missing"})
    yield from _entry("eps outside the root in the forward", "normalization", eps, {"eps": "outside"})
    yield from _entry(
        "square root missing in the forward",
        "normalization",
        "xhat = (x - mu) / sqrt(var + eps): divide by the root.",
        {"root": 1.0},
    )
    yield from _entry(
        "power of rstd wrong in the forward",
        "normalization",
        "xhat = (x - mu) (var + eps)^(-1/2): divide by the root, don't multiply by it.",
        {"root": -0.5},
        {"root": -1.0},
    )
    for name in ("gamma", "beta"):
        title = f"{name} forgotten in the forward"
        yield from _entry(title, "scale-and-shift", "y = gamma xhat + beta.", {name: False})


def _sources_and_axes() -> Iterator[Mistake]:
    yield from _entry(
        "running statistic used in training",
        "normalization",
        "In training mu and var are those of the batch; the running ones are for evaluation.",
        *({"mean_from": when.partition(",")[0], "variance_from": when} for when in _KEPT),
        *({"mean_from": when} for when in ("running", "new", "old")),
        *({"variance_from": when} for when in _KEPT),
    )
    yield from _entry(
        "spatial axes left out of a sum in the forward",
        "mean",
        "mu and var of a channel are over the batch and every position: m = N H W.",
        {"mean_over": "batch", "variance_over": "batch"},
        {"mean_over": "batch"},
        {"variance_over": "batch"},
        {"mean_count": "batch", "variance_count": "batch"},
        {"mean_count": "batch"},
        {"variance_count": "batch"},
        only="with positions",
    )
    for over, only in (("mistaken", ""), ("crossed", "square")):
        yield from _entry(
            "channel axis transposed in the forward",
            "mean",
            "mu and var are sums over every axis but the channels'.",
            {"mean_over": over, "variance_over": over},
            only=only,
        )


def forward_mistakes() -> Iterator[Mistake]:
    """All of them, in the order of the computation."""
    for part in (_statistics, _roots_and_scales, _sources_and_axes):
        yield from part()
