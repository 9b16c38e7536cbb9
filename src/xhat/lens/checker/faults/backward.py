"""Mistakes of the backward pass: (name, display of the source, remedy, alternative ways as faults).

Those of the sums in dx are in `sums`.
"""

from typing import Any

__all__ = ["BACKWARD", "EXCHANGED", "Entries"]

EXCHANGED = "dgamma and dbeta exchanged"  # in both, or in none

Entries = tuple[tuple[str, str, str, tuple[dict[str, Any], ...]], ...]

_PATHS: Entries = (
    (
        "direct path dropped",
        "path-1",
        "dx needs gamma rstd dy: every y depends on its own x.",
        ({"direct_kept": 0.0},),
    ),
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
    (
        "gamma twice in dx",
        "path-1",
        "Every path has gamma once: dxhat = gamma dy.",
        ({f"{path}_source": "dxhat gamma" for path in ("direct", "mean", "variance")},),
    ),
    *(
        (
            f"gamma twice in the {path} path",
            "path-1",
            f"The {path} path has gamma once: it starts from dxhat = gamma dy, or from dy with gamma in front.",
            ({f"{path}_source": "dxhat gamma"},),
        )
        for path in ("mean", "variance")
    ),
    (
        "xhat forgotten in the variance path",
        "path-2-product",
        "The variance path is gamma rstd xhat sum(dy xhat) / m: xhat stands in the sum and in front of it.",
        ({"variance_along": "1"}, {"variance_sum_with": "1"}),
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
        (
            *({"all_power": k} for k in (-2, -1)),
            *({"backward_root": k, "backward_where": "scale"} for k in (-0.25, 0.25)),  # another root of rstd
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
                for where in ("everywhere", "scale", "dvar", "dvar step", *more)
            ),
        )
        for name, fault, value, more in (
            ("eps missing in the backward", "backward_eps", "missing", ("direct",)),
            ("eps outside the root in the backward", "backward_eps", "outside", ("direct",)),
            ("square root missing in the backward", "backward_root", 1.0, ()),  # direct: a power of rstd
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
            tuple({f"{output}_over": over} for over in ("batch", "rows", "columns")),
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

BACKWARD: Entries = (*_PATHS, *_DXHAT, *_CORRECTIONS, *_POWERS, *_RSTD, *_PARAMETERS)
