"""The catalogue: every mistake the checker can name, each once, as knobs of the exact computation.

No arithmetic lives here. A mistake with several ways of making it has several entries of one name. The second
argument of an entry is the display of the source (see `lens.source`) to read again.
"""

from collections.abc import Iterator
from itertools import combinations

from xhat.lens.mistakes import Mistake, compatible
from xhat.lens.mistakes import entries as _entry

__all__ = ["CATALOGUE", "TITLES", "sets_of"]


# The running statistic as it came, or after the update: with momentum new or old, its variance with N or N - 1.
_KEPT = ("running", "new, N", "new, N - 1", "old, N", "old, N - 1")


def _forward() -> Iterator[Mistake]:
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
    for name in ("gamma", "beta"):
        title = f"{name} forgotten in the forward"
        yield from _entry(title, "scale-and-shift", "y = gamma xhat + beta.", {name: False})


def _whole_paths() -> Iterator[Mistake]:
    yield from _entry(
        "mean path dropped",
        "path-3-product",
        "dx needs - gamma rstd sum(dy) / m: mu depends on every x.",
        {"mean_kept": 0.0},
    )
    yield from _entry(
        "variance path dropped",
        "path-2-product",
        "dx needs - gamma rstd xhat sum(dy xhat) / m: var depends on every x.",
        {"variance_kept": 0.0},
    )
    for name in ("mean and variance paths both dropped", "statistics detached from the graph"):
        yield from _entry(
            name,
            "input-gradient",
            "mu and var depend on x: two more terms flow to dx through them.",
            {"mean_kept": 0.0, "variance_kept": 0.0},
        )
    for path, line in (("direct", "path-1"), ("mean", "path-3-product"), ("variance", "path-2-product")):
        sign = "plus" if path == "direct" else "minus"
        yield from _entry(
            f"sign of the {path} path", line, f"In dx the {path} path has a {sign}.", {f"{path}_sign": -1.0}
        )
    yield from _entry(
        "factor 2 in the variance path",
        "path-2",
        "The -1/2 of drstd/dvar and the 2 of dvar/dx cancel: use both or neither.",
        {"variance_factor": 0.5},
        {"variance_factor": 2.0},
    )
    for name in ("gamma forgotten in dx", "dy used for dxhat"):
        yield from _entry(
            name,
            "path-1",
            "Every path starts from dxhat = gamma dy, not from dy.",
            {"direct_source": "dy", "mean_source": "dy", "variance_source": "dy"},
        )
    for path in ("direct", "mean", "variance"):
        formula = f"The {path} path starts from dxhat = gamma dy as the others do."
        yield from _entry(
            f"dy used for dxhat in the {path} path", "path-1", formula, {f"{path}_source": "dy"}
        )


def _counts_and_powers() -> Iterator[Mistake]:
    yield from _entry(
        "N - 1 in one place and N in another: variance path",
        "variance-by-input",
        "The path divides by what the forward divided by: m for sum / m, m - 1 for sum / (m - 1).",
        {"variance_divisor": "other"},
    )
    yield from _entry(
        "N - 1 in one place and N in another: the backward's own variance",
        "variance",
        "The backward needs the variance of the forward; it computes another one.",
        {"backward_variance": "other", "variance_divisor": "other"},
        {"backward_variance": "other"},
    )
    yield from _entry(
        "N - 1 in one place and N in another: mean path",
        "mean-by-input",
        "dmu/dx = 1 / m, whatever the variance divides by.",
        {"mean_divisor": "other"},
    )
    mean, variance = (
        "The mean path is gamma rstd sum(dy) / m.",
        "The variance path is gamma rstd xhat sum(dy xhat) / m.",
    )
    closed = "Closed form: gamma rstd / m (m dy - sum(dy) - xhat sum(dy xhat))."
    path2, path3 = "path-2-product", "path-3-product"
    sums = "sum where a mean is needed: "
    yield from _entry(sums + "mean path", path3, mean, {"mean_count_power": 1})
    yield from _entry(sums + "variance path", path2, variance, {"variance_count_power": 1})
    yield from _entry(sums + "all of dx", "input-gradient", closed, {"all_count": 1})
    means = "mean where a sum is needed: "
    yield from _entry(means + "direct path", "input-gradient", closed, {"direct_count": -1})
    yield from _entry(means + "mean path", path3, mean, {"mean_count_power": -1})
    yield from _entry(means + "variance path", path2, variance, {"variance_count_power": -1})
    yield from _entry(means + "all of dx", "input-gradient", closed, {"all_count": -1})
    power = "power of rstd wrong in the "
    yield from _entry(
        power + "direct path", "path-1", "dxhat/dx = rstd, once.", {"direct_power": -1}, {"direct_power": 1}
    )
    yield from _entry(
        power + "mean path",
        "path-3",
        "dL/dmu = - gamma rstd sum(dy): rstd once.",
        {"mean_power": -1},
        {"mean_power": 1},
    )
    yield from _entry(
        power + "variance path",
        "path-2",
        "dL/dvar = - 1/2 rstd^3 sum(dxhat (x - mu)): rstd three times.",
        *({"variance_power": k} for k in (-3, -2, -1, 1)),
    )
    yield from _entry(
        "power of rstd wrong in all of dx", "input-gradient", "dx has rstd once in front.", {"all_power": -1}
    )
    spatial = "Sums over a channel are over the batch and every position: m = N H W."
    left_out = "spatial axes left out of a sum in dx"
    yield from _entry(
        left_out,
        "input-gradient",
        spatial,
        {"mean_sum_over": "batch"},
        {"variance_sum_over": "batch"},
        {"mean_sum_over": "batch", "variance_sum_over": "batch"},
        {"mean_divisor": "batch"},
        {"variance_divisor": "batch"},
        {"mean_divisor": "batch", "variance_divisor": "batch"},
        only="with positions",
    )


def _recomputed() -> Iterator[Mistake]:
    places = ("everywhere", "scale", "dvar", "dvar step")
    for name, knob, value in (
        ("eps missing in the backward", "backward_eps", "missing"),
        ("eps outside the root in the backward", "backward_eps", "outside"),
        ("square root missing in the backward", "backward_root", 1.0),
    ):
        yield from _entry(
            name,
            "path-2",
            "The backward needs the rstd of the forward, (var + eps)^(-1/2).",
            *({knob: value, "backward_where": place} for place in places),
        )
    yield from _entry(
        "channel axis transposed in dx",
        "input-gradient",
        "The sums in dx are over every axis but the channels'.",
        {"mean_sum_over": "mistaken", "variance_sum_over": "mistaken"},
        {"mean_sum_over": "mistaken"},
        {"variance_sum_over": "mistaken"},
    )


def _parameters() -> Iterator[Mistake]:
    dgamma = "dgamma = sum(dy xhat)."
    for name, factor in (("x", "x"), ("x - mu", "x - mu")):
        yield from _entry(
            f"dgamma with {name} instead of xhat", "gamma-gradient", dgamma, {"dgamma_with": factor}
        )
    for output, line, formula in (
        ("dgamma", "gamma-gradient", dgamma),
        ("dbeta", "beta-gradient", "dbeta = sum(dy)."),
    ):
        yield from _entry(
            f"{output} scaled by 1/n", line, formula + " A sum, not a mean.", {f"{output}_count": "mean"}
        )
        yield from _entry(f"{output} with dxhat instead of dy", line, formula, {f"{output}_of": "dxhat"})
        yield from _entry(
            f"spatial axes left out of a sum in {output}",
            line,
            formula + " The sum is over the batch and every position.",
            {f"{output}_over": "batch"},
            only="with positions",
        )
        yield from _entry(
            f"channel axis transposed in {output}",
            line,
            formula + " The sum is over every axis but the channels'.",
            {f"{output}_over": "mistaken"},
        )


CATALOGUE: tuple[Mistake, ...] = (
    *_forward(),
    *_whole_paths(),
    *_counts_and_powers(),
    *_recomputed(),
    *_parameters(),
)

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
