"""Mistakes of the backward pass: (name, display of the source, remedy, alternative ways as faults)."""

from typing import Any

__all__ = ["BACKWARD", "EXCHANGED"]

EXCHANGED = "dgamma and dbeta exchanged"  # in both, or in none

Entries = tuple[tuple[str, str, str, tuple[dict[str, Any], ...]], ...]

_PATHS: Entries = (
    (
        "mean path dropped",
        "path-3-product",
        "dx needs - gamma rstd sum(dy) / m: mu depends on every x.",
        ({"mean_kept": 0.0},),
    ),
    (
        "variance path dropped",
        "path-2-product",
        "dx needs - gamma rstd xhat sum(dy xhat) / m: var depends on every x.",
        ({"variance_kept": 0.0},),
    ),
    *(
        (
            name,
            "input-gradient",
            "mu and var depend on x: two more terms flow to dx through them.",
            ({"mean_kept": 0.0, "variance_kept": 0.0},),
        )
        for name in ("mean and variance paths both dropped", "statistics detached from the graph")
    ),
    *(
        (f"sign of the {path} path", line, f"In dx the {path} path has a {sign}.", ({f"{path}_sign": -1.0},))
        for path, line, sign in (
            ("direct", "path-1", "plus"),
            ("mean", "path-3-product", "minus"),
            ("variance", "path-2-product", "minus"),
        )
    ),
    (
        "factor 2 in the variance path",
        "path-2",
        "The -1/2 of drstd/dvar and the 2 of dvar/dx cancel: use both or neither.",
        ({"variance_factor": 0.5}, {"variance_factor": 2.0}),
    ),
)

_DXHAT: Entries = (
    *(
        (
            name,
            "path-1",
            "Every path starts from dxhat = gamma dy, not from dy.",
            ({"direct_source": "dy", "mean_source": "dy", "variance_source": "dy"},),
        )
        for name in ("gamma forgotten in dx", "dy used for dxhat")
    ),
    *(
        (
            f"dy used for dxhat in the {path} path",
            "path-1",
            f"The {path} path starts from dxhat = gamma dy as the others do.",
            ({f"{path}_source": "dy"},),
        )
        for path in ("direct", "mean", "variance")
    ),
)

_CORRECTIONS: Entries = (
    (
        "N - 1 in one place and N in another: variance path",
        "variance-by-input",
        "The path divides by what the forward divided by: m for sum / m, m - 1 for sum / (m - 1).",
        ({"variance_divisor": "other"},),
    ),
    (
        "N - 1 in one place and N in another: the backward's own variance",
        "variance",
        "The backward needs the variance of the forward; it computes another one.",
        ({"backward_variance": "other", "variance_divisor": "other"}, {"backward_variance": "other"}),
    ),
    (
        "N - 1 in one place and N in another: mean path",
        "mean-by-input",
        "dmu/dx = 1 / m, whatever the variance divides by.",
        ({"mean_divisor": "other"},),
    ),
)

_SUM, _MEAN = "sum where a mean is needed: ", "mean where a sum is needed: "
_MEAN_PATH = "The mean path is gamma rstd sum(dy) / m."
_VARIANCE_PATH = "The variance path is gamma rstd xhat sum(dy xhat) / m."
_CLOSED = "Closed form: gamma rstd / m (m dy - sum(dy) - xhat sum(dy xhat))."

_COUNTS: Entries = (
    (_SUM + "mean path", "path-3-product", _MEAN_PATH, ({"mean_count_power": 1},)),
    (_SUM + "variance path", "path-2-product", _VARIANCE_PATH, ({"variance_count_power": 1},)),
    (_SUM + "all of dx", "input-gradient", _CLOSED, ({"all_count": 1},)),
    (_MEAN + "direct path", "input-gradient", _CLOSED, ({"direct_count": -1},)),
    (_MEAN + "mean path", "path-3-product", _MEAN_PATH, ({"mean_count_power": -1},)),
    (_MEAN + "variance path", "path-2-product", _VARIANCE_PATH, ({"variance_count_power": -1},)),
    (_MEAN + "all of dx", "input-gradient", _CLOSED, ({"all_count": -1},)),
)

_POWER = "power of rstd wrong in "

_POWERS: Entries = (
    (
        _POWER + "the direct path",
        "path-1",
        "dxhat/dx = rstd, once.",
        ({"direct_power": -1}, {"direct_power": 1}, {"direct_power": -2}),
    ),
    (
        _POWER + "the mean path",
        "path-3",
        "dL/dmu = - gamma rstd sum(dy): rstd once.",
        ({"mean_power": -1}, {"mean_power": 1}, {"mean_power": -2}),
    ),
    (
        _POWER + "the variance path",
        "path-2",
        "dL/dvar = - 1/2 rstd^3 sum(dxhat (x - mu)): rstd three times.",
        tuple({"variance_power": k} for k in (-3, -2, -1, 1)),
    ),
    (
        _POWER + "all of dx",
        "input-gradient",
        "dx has rstd once in front.",
        tuple({"all_power": k} for k in (-2, -1)),
    ),
)

_AXES: Entries = (
    (
        "spatial axes left out of a sum in dx",
        "input-gradient",
        "Sums over a channel are over the batch and every position: m = N H W.",
        (
            {"mean_sum_over": "batch"},
            {"variance_sum_over": "batch"},
            {"mean_sum_over": "batch", "variance_sum_over": "batch"},
            {"mean_divisor": "batch"},
            {"variance_divisor": "batch"},
            {"mean_divisor": "batch", "variance_divisor": "batch"},
        ),
    ),
)

_RSTD: Entries = (
    *(
        (
            name,
            "path-2",
            "The backward needs the rstd of the forward, (var + eps)^(-1/2).",
            tuple(
                {fault: value, "backward_where": where}
                for where in ("everywhere", "scale", "dvar", "dvar step")
            ),
        )
        for name, fault, value in (
            ("eps missing in the backward", "backward_eps", "missing"),
            ("eps outside the root in the backward", "backward_eps", "outside"),
            ("square root missing in the backward", "backward_root", 1.0),
        )
    ),
    (
        "running variance used in the backward",
        "path-2",
        "The backward of training needs the rstd of the batch, as the forward computed it.",
        tuple(
            {"backward_variance": when, "backward_where": where}
            for when in ("running", "new, N", "new, N - 1", "old, N")
            for where in ("everywhere", "scale")
        ),
    ),
    *(
        (
            f"{wrong} in dx",
            "input-gradient",
            remedy,
            (
                {"mean_sum_over": over, "variance_sum_over": over},
                {"mean_sum_over": over},
                {"variance_sum_over": over},
            ),
        )
        for wrong, remedy, over in (
            ("axis forgotten in a sum", "The sums in dx have one value for each channel.", "everything"),
            ("last sample left out of a sum", "The sums in dx are over every sample.", "all but the last"),
            ("last sample counted twice in a sum", "The sums in dx count a sample once.", "the last twice"),
        )
    ),
    (
        "reshape without transpose in the backward",
        "input-gradient",
        "dy.reshape(-1, C) needs the channels as the last axis: dy.transpose(0, 2, 3, 1) first.",
        ({"backward_grouping": "reshaped"},),
    ),
    (
        "channel axis transposed in dx",
        "input-gradient",
        "The sums in dx are over every axis but the channels'.",
        (
            {"mean_sum_over": "mistaken", "variance_sum_over": "mistaken"},
            {"mean_sum_over": "mistaken"},
            {"variance_sum_over": "mistaken"},
        ),
    ),
)


def _parameter(output: str, line: str, formula: str) -> Entries:
    """Mistakes that dgamma and dbeta share."""
    return (
        (f"{output} scaled by 1/n", line, f"{formula} A sum, not a mean.", ({f"{output}_count": "mean"},)),
        (f"{output} with dxhat instead of dy", line, formula, ({f"{output}_of": "dxhat"},)),
        (
            f"spatial axes left out of a sum in {output}",
            line,
            f"{formula} The sum is over the batch and every position.",
            ({f"{output}_over": "batch"},),
        ),
        (
            f"channel axis transposed in {output}",
            line,
            f"{formula} The sum is over every axis but the channels'.",
            ({f"{output}_over": "mistaken"},),
        ),
        (
            f"axis forgotten in {output}",
            line,
            f"{formula} One value for each channel.",
            ({f"{output}_over": "everything"},),
        ),
        (
            f"last sample lost or counted twice in {output}",
            line,
            f"{formula} The sum counts every sample once.",
            ({f"{output}_over": "all but the last"}, {f"{output}_over": "the last twice"}),
        ),
    )


_DGAMMA = "dgamma = sum(dy xhat)."

_PARAMETERS: Entries = (
    *(
        (f"dgamma with {factor} instead of xhat", "gamma-gradient", _DGAMMA, ({"dgamma_with": factor},))
        for factor in ("x", "x - mu", "y")
    ),
    ("xhat forgotten in dgamma", "gamma-gradient", _DGAMMA, ({"dgamma_with": "1"},)),
    (
        EXCHANGED,
        "gamma-gradient",
        f"{_DGAMMA} dbeta = sum(dy). They are returned in the order of the arguments.",
        ({"dgamma_with": "1", "dbeta_with": "xhat"},),
    ),
    *_parameter("dgamma", "gamma-gradient", _DGAMMA),
    *_parameter("dbeta", "beta-gradient", "dbeta = sum(dy)."),
)

BACKWARD: Entries = (*_PATHS, *_DXHAT, *_CORRECTIONS, *_COUNTS, *_POWERS, *_AXES, *_RSTD, *_PARAMETERS)
