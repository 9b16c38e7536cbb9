"""Mistakes of the backward pass, as knobs of the exact computation (see `catalogue`)."""

from collections.abc import Iterator

from xhat.lens.checker.faults.mistakes import Mistake
from xhat.lens.checker.faults.mistakes import entries as _entry

__all__ = ["backward_mistakes"]


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


def _starts() -> Iterator[Mistake]:
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


def _corrections() -> Iterator[Mistake]:
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


def _counts() -> Iterator[Mistake]:
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


def _powers() -> Iterator[Mistake]:
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


def _positions() -> Iterator[Mistake]:
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


def backward_mistakes() -> Iterator[Mistake]:
    """All of them: paths first, then what stands in them, then the parameters."""
    for part in (_whole_paths, _starts, _corrections, _counts, _powers, _positions, _recomputed, _parameters):
        yield from part()
