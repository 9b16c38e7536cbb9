"""Mistakes of the forward pass: (name, display of the source, remedy, alternative ways as faults)."""

from typing import Any

__all__ = ["FORWARD"]

_ROOT = "rstd = (var + eps)^(-1/2): eps stands inside the root."

# A running statistic before the update, or after it: with the momentum of PyTorch ("new") or Keras ("old"), and with a
# variance divided by N or N - 1.
_RUNNING = ("running", "new, N", "new, N - 1", "old, N", "old, N - 1")


def _both(over: str, count: str = "m") -> tuple[dict[str, Any], ...]:
    """Wrong axes of mu and var, of mu alone, and of var alone."""
    mean = {"mean_over": over, "mean_count": count} if count != "m" else {"mean_over": over}
    var = {"variance_over": over, "variance_count": count} if count != "m" else {"variance_over": over}
    return ({**mean, **var}, mean, var)


FORWARD: tuple[tuple[str, str, str, tuple[dict[str, Any], ...]], ...] = (
    # mu and var
    (
        "sum where a mean is needed: mu",
        "mean",
        "mu = sum(x) / m: divide by m.",
        ({"mean_count": "1"},),
    ),
    (
        "sum where a mean is needed: var",
        "variance",
        "var = sum((x - mu)^2) / m: divide by m.",
        ({"variance_count": "1"},),
    ),
    (
        "N - 1 in the mean",
        "mean",
        "mu = sum(x) / m; N - 1 belongs to a variance only.",
        ({"mean_count": "m - 1"},),
    ),
    (
        "mean not subtracted in the variance",
        "variance",
        "var = mean((x - mu)^2), not mean(x^2).",
        ({"variance_about": "0"},),
    ),
    (  # found by search only if the mean is wrong too; alone, only rounding shows it
        "one-pass variance cancelling",
        "variance",
        "mean(x^2) - mu^2 loses every digit when |mu| is large: sum (x - mu)^2 in a second pass, or merge blocks.",
        ({"variance_form": "one pass"},),
    ),
    # rstd and y
    ("eps missing in the forward", "normalization", _ROOT, ({"eps": "missing"},)),
    ("eps outside the root in the forward", "normalization", _ROOT, ({"eps": "outside"},)),
    (
        "square root missing in the forward",
        "normalization",
        "xhat = (x - mu) / sqrt(var + eps): divide by the root.",
        ({"root": 1.0},),
    ),
    (
        "power of rstd wrong in the forward",
        "normalization",
        "xhat = (x - mu) (var + eps)^(-1/2): divide by the root, don't multiply by it.",
        ({"root": -0.5}, {"root": -1.0}),
    ),
    (
        "square root taken twice in the forward",
        "normalization",
        "xhat = (x - mu) / sqrt(var + eps): one root, of the variance and not of the standard deviation.",
        ({"root": 0.25, "eps": "outside"}, {"root": 0.25}),
    ),
    (
        "beta scaled by gamma in the forward",
        "scale-and-shift",
        "y = gamma xhat + beta, not gamma (xhat + beta).",
        ({"beta_times": "gamma"},),
    ),
    ("gamma forgotten in the forward", "scale-and-shift", "y = gamma xhat + beta.", ({"gamma": False},)),
    ("beta forgotten in the forward", "scale-and-shift", "y = gamma xhat + beta.", ({"beta": False},)),
    # the source of the statistics, and their axes
    (
        "running statistic used in training",
        "normalization",
        "In training mu and var are those of the batch; the running ones are for evaluation.",
        (
            *({"mean_from": when.partition(",")[0], "variance_from": when} for when in _RUNNING),
            *({"mean_from": when} for when in ("running", "new", "old")),
            *({"variance_from": when} for when in _RUNNING),
        ),
    ),
    (
        "spatial axes left out of a sum in the forward",
        "mean",
        "mu and var of a channel are over the batch and every position: m = N H W.",
        (
            {"mean_over": "batch", "variance_over": "batch"},
            {"mean_over": "batch"},
            {"variance_over": "batch"},
            {"mean_count": "batch", "variance_count": "batch"},
            {"mean_count": "batch"},
            {"variance_count": "batch"},
        ),
    ),
    (
        "channel axis transposed in the forward",
        "mean",
        "mu and var are sums over every axis but the channels'.",
        (
            {"mean_over": "mistaken", "variance_over": "mistaken"},
            {"mean_over": "crossed", "variance_over": "crossed"},
        ),
    ),
    (
        "axis forgotten in the forward",
        "mean",
        "mu and var have one value for each channel: sum over every axis but the channels'.",
        _both("everything"),
    ),
    (
        "statistics of each sample in the forward",
        "mean",
        "mu and var are over the batch too; over one sample they are those of instance or layer norm.",
        (*_both("instance"), *_both("layer")),
    ),
    (
        "reshape without transpose in the forward",
        "mean",
        "x.reshape(-1, C) needs the channels as the last axis: x.transpose(0, 2, 3, 1) first.",
        ({"grouping": "reshaped"},),
    ),
    *(
        (
            f"last sample {wrong} in the forward",
            "mean",
            "mu and var are over every sample, each once.",
            (*_both(over), *_both(over, "every")),
        )
        for wrong, over in (("left out", "all but the last"), ("counted twice", "the last twice"))
    ),
)
