"""Mistakes of the sums in dx, their axes and their counts: (name, display of the source, remedy, alternative ways)."""

from typing import Any

from xhat.lens.checker.faults.backward import Entries

__all__ = ["SUMS"]

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
    (
        "number of channels for N in dx",
        "mean-by-input",
        "N is the number of values of a channel: x.shape[0] of (N, C), not x.shape[1].",
        (
            {"mean_divisor": "channels"},
            {"variance_divisor": "channels"},
            {"mean_divisor": "channels", "variance_divisor": "channels"},
        ),
    ),
)

_MEAN_OVER, _VARIANCE_OVER = {"mean_sum_over": "everything"}, {"variance_sum_over": "everything"}
_MEAN_OF, _VARIANCE_OF = (
    _MEAN_OVER | {"mean_divisor": "everything"},
    _VARIANCE_OVER | {"variance_divisor": "everything"},
)

# Sums and means over every axis; other factors are then in the sum, or in front of it.
_EVERYTHING: tuple[dict[str, Any], ...] = (
    _MEAN_OF,
    _VARIANCE_OF,
    _MEAN_OF | _VARIANCE_OF,
    _MEAN_OVER | {"mean_sum_with": "rstd"},
    _VARIANCE_OVER | {"variance_sum_with": "x - mu"},
    *(ways | {"gamma_at": "the end"} for ways in (_MEAN_OF, _VARIANCE_OF, _MEAN_OF | _VARIANCE_OF)),
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
    *(
        (
            f"{wrong} in dx",
            "input-gradient",
            remedy,
            (
                {"mean_sum_over": over, "variance_sum_over": over},
                {"mean_sum_over": over},
                {"variance_sum_over": over},
                *more,
            ),
        )
        for wrong, remedy, over, more in (
            (
                "axis forgotten in a sum",
                "The sums in dx have one value for each channel.",
                "everything",
                _EVERYTHING,
            ),
            (
                "last sample left out of a sum",
                "The sums in dx are over every sample.",
                "all but the last",
                (),
            ),
            (
                "last sample counted twice in a sum",
                "The sums in dx count a sample once.",
                "the last twice",
                (),
            ),
        )
    ),
    (
        "reshape without transpose in the backward",
        "input-gradient",
        "dy.reshape(-1, C) needs the channels as the last axis: dy.transpose(0, 2, 3, 1) first, and back.",
        ({"backward_grouping": "reshaped"}, {"dx_grouping": "reshaped"}),
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

SUMS: Entries = (*_COUNTS, *_AXES)
