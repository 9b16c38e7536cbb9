"""The numbers of one batch-norm layer for the report: statistics per channel, histograms, sampled values.

No HTML lives here, and no judgement (see `findings`). Everything is computed in float64, one block of channels at a
time, so that a large batch is never copied to float64 as a whole.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xhat import equations
from xhat.errors import ArgumentError, DegenerateBatchError, DtypeError, ShapeError
from xhat.layout import channel_axes
from xhat.lens.paths.graph import by_channel
from xhat.lens.paths.summary import summarize

__all__ = ["BINS", "SAMPLE", "Layer", "layer_numbers", "read_array"]

Array = NDArray[np.float64]

BINS = 32  # bars of a histogram
SAMPLE = 16  # values per channel for play mode
_BLOCK = 1 << 20  # elements in float64 at a time


class Layer(NamedTuple):
    """One layer: its settings, and per channel its statistics, histograms and sampled values.

    ``columns[name]`` is (C,); ``histograms`` holds "x", "dy" and "dx" as (C, BINS) counts, with their ranges in
    the columns; ``sample`` holds "x" and "dy" as (C, n). Without dy, everything about gradients is absent. ``fixed``
    is true if the layer normalized with given moments, through which no gradient flows.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    axis: tuple[int, ...]
    m: int
    eps: float
    correction: float
    fixed: bool
    columns: dict[str, Array]
    histograms: dict[str, NDArray[np.int64]]
    sample: dict[str, NDArray[Any]]

    @property
    def has_gradient(self) -> bool:
        return "dx" in self.columns


def layer_numbers(
    x: ArrayLike,
    dy: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    mean: ArrayLike | None = None,
    var: ArrayLike | None = None,
    axis: int | tuple[int, ...] = 1,
    eps: float = 1e-5,
    correction: float = 0,
    running: tuple[ArrayLike, ArrayLike] | None = None,
    dtype: str | None = None,
    name: str = "",
) -> Layer:
    """The numbers of forward and backward of every channel. With mean and var (both), the moments are given.

    x and dy have the same shape; gamma, beta, mean, var and the running moments, with which those of the batch are
    compared, have the shape of the channel axes. dtype: that of the layer, if x was widened.
    Raises ShapeError, DtypeError, ArgumentError or DegenerateBatchError.
    """
    dtype = dtype or ("bfloat16" if np.asarray(x).dtype.str[1:] == "V2" else None)
    x = _real(x, "x")
    axes = channel_axes(x.ndim, axis, "report")
    channels = tuple(x.shape[a] for a in axes)
    values = by_channel(x, axes)
    gradients = None if dy is None else by_channel(_same_shape(_real(dy, "dy"), x), axes)
    fixed = mean is not None
    _check_options(values, eps, correction, fixed)
    kept = dict(zip(("running_mean", "running_var"), running or (None, None), strict=True))
    parameters = _parameters(channels, gamma=gamma, beta=beta, mu=mean, var=var, **kept)
    blocks = [
        _block_numbers(
            values[block].astype(np.float64),
            None if gradients is None else gradients[block].astype(np.float64),
            {key: value[block, None] for key, value in parameters.items()},
            eps,
            correction,
        )
        for block in _blocks(values)
    ]
    columns, histograms = (
        {key: np.concatenate([b[i][key] for b in blocks]) for key in blocks[0][i]} for i in (0, 1)
    )
    settings = x.shape, dtype or x.dtype.name, axes, values.shape[1], float(eps), float(correction), fixed
    return Layer(name, *settings, columns, histograms, _sample(values, gradients))


def _block_numbers(
    x: Array, dy: Array | None, given: dict[str, Array], eps: float, correction: float
) -> tuple[dict[str, Array], dict[str, NDArray[np.int64]]]:
    def total(value: Any) -> Any:
        return np.sum(value, axis=1, keepdims=True)

    m: float = x.shape[1]
    with np.errstate(all="ignore"):
        if "mu" in given:
            mu, var, m = given["mu"], given["var"], np.inf
        else:
            mu, m2 = equations.moments(x, total, m)
            var = equations.variance(m2, m, correction)
        rstd = equations.reciprocal_std(var, eps, np.sqrt)
        xhat = equations.standardize(x, mu, rstd)
        stacks = {"mu": mu, "var": var, "gamma": given["gamma"], "beta": given["beta"], "rstd": rstd}
        columns = {key: value[:, 0] for key, value in stacks.items()}
        columns |= {"min": x.min(axis=1), "max": x.max(axis=1), "eps_share": (eps / (var + eps))[:, 0]}
        ends = np.stack([columns["min"], columns["max"]], axis=1)
        y = equations.normalize(ends, mu, rstd, given["gamma"], given["beta"])
        columns |= {"y_max": y.max(axis=1)} | _against_running(x, total, given, eps)
        histograms = {"x": _histograms(x)}
        if dy is not None:
            sums = equations.gradient_sums(dy, xhat, total)
            paths = equations.paths(
                dy, xhat, *sums, gamma=given["gamma"], rstd=rstd, m=m, correction=correction
            )
            dx = paths.direct + paths.mean + paths.variance
            columns |= {"dbeta": sums[0][:, 0], "dgamma": sums[1][:, 0]}
            columns |= {"dy": np.linalg.norm(dy, axis=1)} | summarize(paths, xhat)._asdict()
            for key, array in (("dy", dy), ("dx", dx)):
                columns |= {f"{key}_min": array.min(axis=1), f"{key}_max": array.max(axis=1)}
                histograms[key] = _histograms(array)
    return columns, histograms


def _against_running(x: Array, total: Any, given: dict[str, Array], eps: float) -> dict[str, Array]:
    """The distance of the batch's mean from the running one in running deviations, and the ratio of the variances."""
    if "running_mean" not in given:
        return {}
    mu, m2 = equations.moments(x, total, x.shape[1])
    rstd = equations.reciprocal_std(given["running_var"], eps, np.sqrt)
    gap = equations.standardize(mu, given["running_mean"], rstd)
    ratio = (equations.variance(m2, x.shape[1]) + eps) * rstd**2
    return {"gap_mean": gap[:, 0], "gap_var": ratio[:, 0]}


def _histograms(array: Array) -> NDArray[np.int64]:
    """Counts in BINS equal bins from the minimum to the maximum of each row; the first bin if they are equal."""
    low, high = array.min(axis=1, keepdims=True), array.max(axis=1, keepdims=True)
    good = np.isfinite(low) & np.isfinite(high)
    width = np.where(
        good & (high > low), high / 2 - low / 2, 1
    )  # halves, so that the difference can't overflow
    place = np.where(good, (array / 2 - low / 2) / width * BINS, 0)
    place = np.clip(np.nan_to_num(place), 0, BINS - 1).astype(np.int64)
    row = np.arange(len(array))[:, None] * BINS
    counts = np.bincount((row + place).ravel(), minlength=len(array) * BINS).reshape(-1, BINS)
    return np.where(good, counts, 0)


def _sample(values: NDArray[Any], gradients: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    """Evenly spaced elements of each channel, exact: as float32 if the batch has at most 32 bits, else as float64."""
    places = np.linspace(0, values.shape[1] - 1, min(values.shape[1], SAMPLE)).round().astype(int)
    arrays = {"x": values} if gradients is None else {"x": values, "dy": gradients}
    return {
        key: array[:, places].astype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
        for key, array in arrays.items()
    }


def _blocks(values: NDArray[Any]) -> Iterator[slice]:
    rows = max(1, _BLOCK // values.shape[1])
    for start in range(0, len(values), rows):
        yield slice(start, start + rows)


def _real(array: ArrayLike, name: str) -> NDArray[Any]:
    given = np.asarray(array)
    if given.dtype.str[1:] == "V2":  # bfloat16, as numpy.save writes it: the upper half of a float32
        given = (given.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if given.dtype.kind in "fiub" or given.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        return given
    raise DtypeError(f"report: {name} has dtype {given.dtype}, expected real numbers.")


def _same_shape(dy: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    if dy.shape != x.shape:
        raise ShapeError(f"report: dy has shape {dy.shape}, expected {x.shape}, the shape of x.")
    return dy


def _parameters(channels: tuple[int, ...], **given: ArrayLike | None) -> dict[str, Array]:
    """gamma and beta (by default 1 and 0), and mu and var if they are given, each as (C,)."""
    defaults = {"gamma": 1.0, "beta": 0.0}
    return {
        name: _per_channel(value, defaults.get(name, 0.0), channels, name)
        for name, value in given.items()
        if value is not None or name in defaults
    }


def _per_channel(given: ArrayLike | None, default: float, channels: tuple[int, ...], name: str) -> Array:
    value = np.full(channels, default) if given is None else _real(given, name).astype(np.float64)
    if value.shape != channels:
        raise ShapeError(
            f"report: {name} has shape {value.shape}, expected {channels} to match the channels of x."
        )
    return value.ravel()


def _check_options(values: NDArray[Any], eps: float, correction: float, fixed: bool) -> None:
    channels, m = values.shape
    if not eps > 0 or not np.isfinite(eps):
        raise ArgumentError(f"report: eps is {eps:g}, expected a positive number such as 1e-5.")
    if not np.isfinite(correction) or correction < 0:
        raise ArgumentError(
            f"report: correction is {correction:g}, expected 0 (divide by m) or 1 (by m - 1)."
        )
    if channels == 0 or m == 0:
        raise DegenerateBatchError(
            f"report: x has {channels} channels of {m} values, expected at least one of each."
        )
    if not fixed and m <= correction:
        raise DegenerateBatchError(
            f"report: each channel has {m} value{'s' * (m != 1)} and correction is {correction:g}, expected more "
            "values than the correction; check axis, or use correction 0."
        )


def read_array(path: str | Path) -> np.ndarray[Any, Any]:
    """The array in a .npy file. Nothing is unpickled, so the file can't run code. Raises ArgumentError."""
    try:
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        found = f"is an archive (of {', '.join(array.files)})"
        array.close()
    except OSError as error:
        found = f"can't be read ({error.strerror or 'it is not an array file'})"
    except (ValueError, EOFError, MemoryError):
        found = "holds no array of numbers"
    raise ArgumentError(f"report: {path} {found}, expected one array in a file written by numpy.save.")
