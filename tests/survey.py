"""Runs every kernel, and digests the results: equal digests mean equal bits.

Run as a program it prints the digests as JSON, so that another process can use another instruction set or
another number of threads; with the argument `errors`, also the distance to the oracle.
"""

import hashlib
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import oracle
from conftest import DTYPES, EPSILON, LAYOUTS, Array, Layout, away_from_the_kink, mask_of

import xhat

# (mask, residual, activation, correction): together they reach every kernel.
OPTIONS: dict[str, tuple[str, bool, Any, int]] = {
    "plain": ("none", False, None, 0),
    "relu": ("weights", False, "relu", 1),
    "leaky_relu, residual": ("none", True, ("leaky_relu", 0.1), 0),
    "silu": ("none", False, "silu", 0),
    "silu, residual, weights": ("weights", True, "silu", 0),
}
# Large enough to be split over threads and blocks, of sizes that no block divides.
LARGE: dict[str, Layout] = {
    "NCHW, large": Layout((17, 13, 41, 67), lambda a: a, 1),
    "NCHW, 3 channels": Layout((5, 3, 211, 223), lambda a: a, 1),
    "NCHW, many small": Layout((33, 257, 7, 7), lambda a: a, 1),
    "NHWC, large": Layout((17, 41, 67, 13), lambda a: a, -1),
    "(N, C), large": Layout((4099, 131), lambda a: a, 1),
    "(N, C), narrow": Layout((200_003, 3), lambda a: a, 1),
    "cropped, large": Layout((5, 13, 67, 71), lambda a: a[:, :, 1:-1, 2:-2], 1),
    "every other, large": Layout((10, 26, 61, 63), lambda a: a[::2, ::2], 1),
}
# x has NaN in the first channel, infinity in the second, both infinities in the third; dy has these in the fourth.
NOT_FINITE = ("NCHW", "NHWC", "(N, C)", "(N, C), many", "long rows", "every other value", "cropped")


def poisoned(a: Array, axis: int, *values: tuple[float, ...]) -> Array:
    """With these values in the first elements of each of the first channels."""
    channels = np.moveaxis(a, axis, 0)
    for channel, some in zip(channels, values, strict=False):
        channel.flat[: len(some)] = some
    return a


class Result:
    """What one forward and backward pass gave, and what the oracle says."""

    def __init__(self, where: str, layout: Layout, dtype: Any, options: str, finite: bool = True) -> None:
        mask, residual, activation, correction = OPTIONS[options]
        self.x = layout.array(f"x {where}", dtype, scale=2, offset=1)
        rng = np.random.default_rng(7)
        self.parameters = tuple(rng.uniform(0.5, 2, layout.channels).astype(dtype) for _ in range(2))
        self.arguments = {
            "axis": layout.axis,
            "correction": correction,
            "mask": mask_of(mask, layout, "mask"),
            "residual": layout.array("residual", dtype) if residual else None,
            "activation": activation,
        }
        self.dy = layout.array("dy", dtype)
        if activation is not None:
            pre, _ = xhat.batch_norm(self.x, *self.parameters, **{**self.arguments, "activation": None})
            self.dy = away_from_the_kink(self.dy, pre, 0.05)
        if not finite:
            poisoned(self.x, layout.axis, (np.nan,), (np.inf,), (np.inf, -np.inf))
            poisoned(self.dy, layout.axis, (), (), (), (np.inf, -np.inf))
        self.y, self.context = xhat.batch_norm(self.x, *self.parameters, **self.arguments)
        self.gradients = xhat.batch_norm_backward(self.dy, self.context)

    def digest(self) -> str:
        """Of every bit of every result, but one NaN is as good as another: processors differ in the NaN they make."""
        hashed = hashlib.sha1()
        for a in (self.y, *self.gradients, self.context.mean, self.context.var):
            hashed.update(b"none" if a is None else np.where(np.isnan(a), a.dtype.type(np.nan), a).tobytes())
        return hashed.hexdigest()

    def error(self) -> float:
        """The largest distance to the oracle, in roundings of the largest value."""
        f = oracle.forward(self.x, *self.parameters, **self.arguments)
        b = oracle.backward(self.dy, self.x, *self.parameters, **self.arguments)
        pairs = [(self.y, f.y), *zip(self.gradients[:3], b[:3], strict=True)]
        if self.gradients.dresidual is not None:
            pairs.append((self.gradients.dresidual, b.dpre))
        epsilon = EPSILON[self.x.dtype.name]
        return max(oracle.worst(a, e) / epsilon / max(1.0, float(np.abs(e).max())) for a, e in pairs)


def survey(
    layouts: dict[str, Layout], errors: bool = False, dtypes: Iterable[str] = DTYPES, finite: bool = True
) -> dict[str, Any]:
    """The digest, and with `errors` the error, of every layout, dtype and option."""
    found = {}
    for where, layout in layouts.items():
        case = where if finite else f"{where}, not finite"
        for name in dtypes:
            for options in OPTIONS:
                result = Result(where, layout, DTYPES[name], options, finite)
                found[f"{case} | {name} | {options}"] = result.digest(), result.error() if errors else None
    return found


if __name__ == "__main__":
    print(json.dumps({
        "isa": xhat.config()["isa"],
        "threads": xhat.config()["threads"],
        "found": {
            **survey(LAYOUTS, errors="errors" in sys.argv[1:]),
            **survey(LARGE, dtypes=("float32", "bfloat16")),
            **survey({where: LAYOUTS[where] for where in NOT_FINITE}, finite=False),
        },
    }))  # fmt: skip
