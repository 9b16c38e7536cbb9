"""Batches that cross the block sizes of kernels: 33 channels; 1023, 1025 and 4097 values a channel; a single value.

`probes` writes them as a dump for kernels in any language; `conditions` runs Python functions on them. The values at
the borders of blocks are so large that each of them shows in every sum. Nothing is judged here.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xhat.errors import ArgumentError
from xhat.lens.checker.expected.probes import LAYOUTS, UNIT, Array, Layout, Probe, rounded

__all__ = ["Crossing", "crossing_probe", "probes"]


class Crossing(NamedTuple):
    """The batch and the positions of a probe, and its number of channels; `offset` is the mean of its values."""

    name: str
    channels: int
    sizes: tuple[int, int, int]
    offset: float = 0.0


# 1023 = 3 x 11 x 31, 1025 = 5 x 5 x 41, 4097 = 17 x 1 x 241: below, above and far above 1024
_CROSSINGS = (
    Crossing("values-1023", 33, (3, 11, 31)),
    Crossing("values-1025", 33, (5, 5, 41)),
    Crossing("values-4097", 33, (17, 1, 241)),
    Crossing("one-value", 33, (1, 1, 1)),
    Crossing("offset", 33, (5, 5, 41), 1e4),
    Crossing("strided", 33, (3, 2, 7)),
)
_BORDERS = (0, 31, 32, 1023, 1024, 4095, 4096)
_EPS, _MOMENTUM = 1e-5, 0.1


def crossing_probe(layout: Layout, crossing: Crossing, *, eps: float, dtype: str = "float64") -> Probe:
    """One batch of a layout; gammas of both signs, dy with a mean and a part along x."""
    rng = np.random.default_rng(sum(crossing.sizes) + crossing.channels)
    c, m = crossing.channels, prod(crossing.sizes)
    unit = float(np.sqrt(eps / 0.4)) if eps > 0.01 else 1.0  # eps is as large as the variance, or small
    noise = rng.standard_normal((c, m))
    borders = [i for i in {*_BORDERS, m - 1} if i < m]
    noise[:, borders] = 0.4 * np.sqrt(m) * rng.choice([-1.0, 1.0], (c, len(borders)))
    rows = rng.uniform(0.6, 1.9, (c, 1)) * noise + rng.uniform(0.7, 2.5, (c, 1)) + crossing.offset
    dy = rng.standard_normal((c, m)) + rng.uniform(0.5, 1.5, (c, 1)) + noise
    wide = [1] * len(layout.shapes[0])
    wide[layout.axis] = c
    values: dict[str, Any] = {
        "x": _shaped(unit * rows, layout, crossing),
        "dy": _shaped(dy, layout, crossing),
        "gamma": (rng.uniform(0.6, 2.2, c) * rng.choice([-1.0, 1.0], c)).reshape(wide),
        "beta": rng.uniform(-2.0, 2.0, wide),
        "running_mean": unit * rng.uniform(-2.0, 2.0, wide),
        "running_var": unit**2 * rng.uniform(0.4, 2.5, wide),
    }
    probe = Probe(layout=layout, eps=eps, **values)
    kept: dict[str, Any] = {name: rounded(value, dtype) for name, value in values.items()}
    return replace(probe, **kept)


def _shaped(rows: Array, layout: Layout, crossing: Crossing) -> Array:
    """(C, m) values in the shape of a layout; the last of the values of a channel stay the last."""
    n, h, w = crossing.sizes
    others = {2: (n * h * w,), 3: (n, h * w), 4: (n, h, w), 5: (n, h, 1, w)}[len(layout.shapes[0])]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(-1, *others), 0, layout.axis))


def probes(
    *, layout: str = "NCHW", dtype: str = "float32", path: str | Path | None = None
) -> dict[str, np.ndarray[Any, Any]]:
    """Make inputs for kernels in any language; `check_data` judges what a kernel gives on them.

    Parameters
    ----------
    layout : {"NC", "NCHW", "NHWC", "NCL", "NLC", "NCDHW", "NDHWC", "CN"}, default "NCHW"
        The layout of x.
    dtype : {"float64", "float32", "bfloat16", "float16"}, default "float32"
        The dtype of x and dy. bfloat16 arrays are their bits as uint16.
    path : str or Path, optional
        A file that `numpy.savez` also writes them to.

    Returns
    -------
    dict of str to ndarray
        Each case has x, gamma, beta, dy, eps, momentum, running_mean, running_var and layout under its name:
        "one-value/x".

    Raises
    ------
    ArgumentError
        For an unknown layout or dtype.

    Notes
    -----
    The cases cross block sizes: 33 channels of 1023, 1025 and 4097 values; one value a channel; values with a mean of
    1e4 (of 40 in float16 and 5 in bfloat16, which keep no more digits); and memory with strides: ``x_buffer`` is
    one-dimensional with NaN between the values, and ``x[i, j, ...]`` is ``x_buffer[x_offset + i x_strides[0] + j
    x_strides[1] + ...]``; dy has the same strides.

    Examples
    --------
    >>> import xhat.lens
    >>> found = xhat.lens.probes(layout="NC")
    >>> found["one-value/x"].shape, found["one-value/x"].dtype
    ((1, 33), dtype('float32'))
    """
    for name, value, known in (("layout", layout, LAYOUTS), ("dtype", dtype, UNIT)):
        if value not in known:
            raise ArgumentError(f"probes: {name} is {value!r}, expected {' or '.join(map(repr, known))}.")
    found: dict[str, np.ndarray[Any, Any]] = {}
    for crossing in _CROSSINGS:
        limit = {"float16": 40.0, "bfloat16": 5.0}.get(dtype, 1e4)
        scaled = crossing._replace(offset=min(crossing.offset, limit))
        p = crossing_probe(LAYOUTS[layout], scaled, eps=_EPS, dtype=dtype)
        found |= {f"{crossing.name}/{name}": value for name, value in _arrays(p, dtype, crossing.name)}
    if path is not None:
        np.savez(path, **found)  # type: ignore[arg-type]
    return found


def _arrays(p: Probe, dtype: str, name: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    wide = "float64" if dtype == "float64" else "float32"
    yield "x", _saved(p.x, dtype)
    yield "dy", _saved(p.dy, dtype)
    for key in ("gamma", "beta", "running_mean", "running_var"):
        if p.count() > 1 or not key.startswith("running"):
            yield key, getattr(p, key).ravel().astype(wide)
    yield "eps", np.float64(p.eps)  # type: ignore[misc]
    yield "momentum", np.float64(_MOMENTUM)  # type: ignore[misc]
    yield "layout", np.array(p.layout.name)
    if name == "strided":
        for key in ("x", "dy"):
            yield from _strided(key, getattr(p, key), dtype)


def _saved(values: Array, dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(dtype)


def _strided(key: str, values: Array, dtype: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """The values with their axes in reverse order in memory, every second element, behind 3 others."""
    buffer = np.full(3 + 2 * values.size, np.nan)
    buffer[3::2] = values.transpose().ravel()
    steps = np.cumprod([2, *values.shape])[:-1]
    yield f"{key}_buffer", _saved(buffer, dtype)
    yield f"{key}_strides", steps.astype(np.int64)
    yield f"{key}_offset", np.int64(3)  # type: ignore[misc]
