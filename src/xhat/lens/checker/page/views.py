"""What the page of a verdict shows, from its comparisons: maps, curves and the largest differences.

No HTML lives here (see `render`), and nothing is judged.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from xhat.lens.checker.diagnosis.comparison import Comparison
from xhat.lens.checker.expected.probes import Array

__all__ = ["pictured"]

_ROWS, _COLUMNS = 24, 64  # channels, and places along the batch, in a map
_LEVELS = 4  # shades of each colour
_LARGEST = 5  # places that are listed
_PATHS = {"direct": "direct path", "mean": "path through mu", "variance": "path through var"}


def pictured(c: Comparison) -> dict[str, Any]:
    """A comparison for the page, in types of JSON: {"title", "shape", "views"}."""
    return {"title": c.title, "shape": " × ".join(map(str, c.probe.x.shape)), "views": _views(c)}


def _views(c: Comparison) -> list[dict[str, Any]]:
    """One view for each output, dx with its three paths; results of another shape have no view."""
    found = [
        _view(c, o, c.yours[o], c.exact[o], c.allowed[o])
        for o in c.yours
        if c.yours[o].size == c.exact[o].size
    ]
    if "dx" in c.yours and c.yours["dx"].size == c.exact["dx"].size:
        place = 1 + next(i for i, view in enumerate(found) if view["output"] == "dx")
        found[place:place] = _path_views(c)
    return found


def _view(c: Comparison, output: str, yours: Array, exact: Array, allowed: Array) -> dict[str, Any]:
    yours = yours.reshape(exact.shape)
    with np.errstate(all="ignore"):
        off = np.where(np.isfinite(yours), yours - exact, np.nan)
        ratio = np.where(off == 0, 0.0, np.abs(off) / allowed)
    ratio = np.nan_to_num(ratio, nan=np.inf)
    by_channel = exact.shape != c.probe.x.shape
    rows = [_rows(c, v) for v in (yours, exact, off, ratio)]
    chosen = _shown(rows[3])
    if by_channel:  # one row, in which the channels are the columns
        rows = [v.T for v in rows]
        chosen = [0]
    return {
        "output": output,
        "ratio": float(ratio.max(initial=0.0)),
        "maps": _maps(rows, chosen, float(np.max(allowed, initial=0.0))),
        "channels": [] if by_channel else chosen,
        "along": "channels"
        if by_channel
        else f"{rows[0].shape[1]:,} values of each channel, by sample and then by position",
        "by_channel": None if by_channel else _curve(rows[3].max(axis=1)),
        "by_place": _curve(rows[3].max(axis=0)),
        "largest": _largest(yours, exact, off, ratio),
    }


def _rows(c: Comparison, values: Array) -> Array:
    """(C, m) values of an array of x's shape, or (C, 1) of a parameter's."""
    return np.moveaxis(values, c.probe.layout.axis, 0).reshape(c.probe.channels, -1)


def _shown(ratio: Array) -> list[int]:
    """The channels of the map: all, or those with the largest differences."""
    worst = np.argsort(-ratio.max(axis=1), kind="stable")[:_ROWS]
    return [int(channel) for channel in np.sort(worst)]


def _maps(rows: list[Array], chosen: list[int], allowed: float) -> list[dict[str, Any]]:
    """Yours, exact and difference; of places that share a column, that with the largest difference is shown.

    levels: the cells of each shade as the outline of a path; scale: the number of the full shade.
    """
    yours, exact, off, ratio = (v[chosen] for v in rows)
    count, m = ratio.shape
    edges = np.linspace(0, m, min(m, _COLUMNS) + 1).astype(int)
    picked = np.stack([a + ratio[:, a:b].argmax(axis=1) for a, b in pairwise(edges)], axis=1)
    yours, exact, off = (np.take_along_axis(v, picked, axis=1) for v in (yours, exact, off))
    size = float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0)) or 1.0
    largest = max(float(np.abs(off[np.isfinite(off)]).max(initial=0.0)), allowed) or 1.0
    return [
        {
            "title": title,
            "columns": picked.shape[1],
            "rows": count,
            "levels": _levels(values / scale),
            "scale": scale,
        }
        for title, values, scale in (
            ("yours", yours, size),
            ("exact", exact, size),
            ("difference", off, largest),
        )
    ]


def _levels(values: Array) -> dict[str, str]:
    """Class -> the cells of this shade: p1 to p4 for positive values, n1 to n4 for negative ones, bad for NaN."""
    with np.errstate(invalid="ignore"):
        shade = np.clip(np.rint(values * _LEVELS), -_LEVELS, _LEVELS)
    found: dict[str, list[str]] = {}
    for (row, column), level in np.ndenumerate(shade):
        if level != 0:
            name = "bad" if np.isnan(level) else f"{'p' if level > 0 else 'n'}{int(abs(level))}"
            found.setdefault(name, []).append(f"M{column} {row}h1v1h-1z")
    return {name: "".join(cells) for name, cells in found.items()}


def _curve(ratio: Array) -> dict[str, Any]:
    """Bars on a logarithmic scale from a hundredth of the allowed error; `line` is the height of the allowed one."""
    edges = np.linspace(0, len(ratio), min(len(ratio), 2 * _COLUMNS) + 1).astype(int)
    tall = np.array([ratio[a:b].max() for a, b in pairwise(edges)])
    finite = tall[np.isfinite(tall)]
    top = max(1.0, float(np.log10(max(finite.max(initial=0.0), 1.0))) + 0.3)
    with np.errstate(divide="ignore"):
        heights = np.clip((np.log10(np.where(np.isfinite(tall), tall, 10**top)) + 2) / (top + 2), 0.0, 1.0)
    bars = "".join(f"M{i} 1v{-h:.3f}h1v{h:.3f}z" for i, h in enumerate(heights) if h > 0)
    return {"bars": bars, "columns": len(heights), "line": round(1 - 2 / (top + 2), 4)}


def _largest(yours: Array, exact: Array, off: Array, ratio: Array) -> list[dict[str, Any]]:
    flat = -ratio.ravel()
    largest = np.argpartition(flat, min(_LARGEST, flat.size) - 1)[:_LARGEST]
    order = largest[np.argsort(flat[largest], kind="stable")]
    places = [tuple(map(int, np.unravel_index(i, ratio.shape))) for i in order]
    return [
        {
            "place": place,
            "yours": yours[place],
            "exact": exact[place],
            "off": off[place],
            "ratio": ratio[place],
        }
        for place in places
        if ratio[place] > 0
    ]


def _path_views(c: Comparison) -> list[dict[str, Any]]:
    """dx as a sum of the three paths, fitted in every channel; too few values can't tell the paths apart."""
    yours = _rows(c, c.yours["dx"].reshape(c.probe.x.shape))
    exact = {name: _rows(c, np.broadcast_to(getattr(c.paths, name), c.probe.x.shape)) for name in _PATHS}
    if c.probe.count() < 4 or not np.isfinite(yours).all():
        return []
    basis = np.stack([exact[name] for name in _PATHS], axis=2)  # (C, m, 3)
    factors = np.stack([np.linalg.lstsq(b, y, rcond=1e-9)[0] for b, y in zip(basis, yours, strict=True)])
    fitted = factors[:, None, :] * basis
    outside = float(((yours - fitted.sum(axis=2)) ** 2).sum() / max((yours**2).sum(), 1e-300))
    shape = np.moveaxis(c.probe.x, c.probe.layout.axis, 0).shape

    def whole(values: Array) -> Array:
        return np.moveaxis(values.reshape(shape), 0, c.probe.layout.axis)

    found = []
    for k, (name, words) in enumerate(_PATHS.items()):
        view = _view(c, words, whole(fitted[:, :, k]), whole(exact[name]), c.allowed["dx"])
        low, high = float(factors[:, k].min()), float(factors[:, k].max())
        found.append(view | {"factors": (low, high), "outside": outside, "path": name})
    return found
