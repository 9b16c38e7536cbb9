"""Assembles one self-contained HTML page about one or several batch-norm layers from its data and web/.

No drawing lives here (the JavaScript of the page draws), and no computation. The page makes no network requests,
which its content security policy enforces, and every name in the data is inserted as text, never as markup.
"""

from __future__ import annotations  # ArrayLike keeps its name in signatures

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xhat.lens.reporter.data import SAMPLE, Layer, layer_numbers
from xhat.lens.reporter.findings import Finding, findings
from xhat.lens.reporter.groups import first_not_finite, groups, is_broken, layer_facts
from xhat.notebook import WrittenPage

__all__ = ["CHANNELS", "page", "report", "write"]

FINDINGS = 100  # listed per layer
CHANNELS = 2048  # shown on one page; of more, each layer shows a selection
_SCRIPTS = [
    "equations",
    "words",
    "svg",
    "state",
    "graph",
    "shapes",
    "channels",
    "play",
    "controls",
    "layers",
    "model",
    "report",
]  # in order of use
_EXACT = {
    "mu",
    "var",
    "rstd",
    "gamma",
    "beta",
    "min",
    "max",
}  # columns kept in float64; the others are only displayed


def report(
    x: ArrayLike,
    dy: ArrayLike | None = None,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = 1,
    eps: float = 1e-5,
    correction: float = 0,
    title: str = "batch normalization",
    path: str | Path = "report.html",
) -> Path:
    """Write a page about the batch of one layer, and return its path.

    Parameters
    ----------
    x : array_like
        The batch.
    dy : array_like, optional
        The gradient with respect to y, in the shape of x. Without it the page shows the forward pass, and gradients in
        its play mode only.
    gamma, beta : array_like, optional
        Scale and shift, in the shape of the channel axes. They default to 1 and 0.
    axis : int or tuple of int, default 1
        The channel axis, or several axes that are the channels together.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    correction : float, default 0
        What the variance divides by is m - correction.
    title : str, default "batch normalization"
        The title of the page.
    path : str or Path, default "report.html"
        The file. It is self-contained and makes no network requests.

    Returns
    -------
    Path
        The path of the file.

    Raises
    ------
    ShapeError, DtypeError, ArgumentError, DegenerateBatchError
        If the arrays do not fit each other, or have no variance.

    See Also
    --------
    report_model : All layers of a PyTorch model.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat.lens
    >>> x = np.random.default_rng(0).normal(size=(64, 8))
    >>> xhat.lens.report(x, path="report.html")  # doctest: +SKIP
    PosixPath('report.html')
    """
    layer = layer_numbers(x, dy, gamma, beta, axis=axis, eps=eps, correction=correction, name=title)
    return write(page([layer], title), path)


def write(text: str, path: str | Path) -> Path:
    """Write a page, and return its path, for which a notebook shows the page."""
    where = WrittenPage(path)
    where.write_text(text, encoding="utf-8")
    return where


def page(layers: Sequence[Layer], title: str, *, model: bool = False, doctor: str | None = None) -> str:
    """The page as text. If it is about a model, doctor is the address of the doctor's page about it, or None."""
    limit = max(8, CHANNELS // max(1, len(layers)))
    shown = sum(min(limit, len(layer.columns["mu"])) for layer in layers)
    few = 8 if shown > 512 else SAMPLE  # values per channel for play mode
    found = [findings(layer) for layer in layers]
    records = [
        _record(layer, _interleaved(one), limit, few) for layer, one in zip(layers, found, strict=True)
    ]
    data = {"title": title, "model": model, "doctor": doctor, "layers": records}
    if model:
        data |= {"groups": _groups(layers, found, records), "first": first_not_finite(layers)}
    shared, own = files("xhat") / "web", files("xhat.lens.reporter") / "web"

    def part(name: str) -> str:
        return (own / name).read_text(encoding="utf-8")

    pieces = {
        "style": (shared / "page.css").read_text(encoding="utf-8") + part("report.css"),
        "data": _inert(data),
        "theme": (shared / "theme.js").read_text(encoding="utf-8"),
        "script": "\n".join(part(f"{name}.js") for name in _SCRIPTS),
    }
    # Substitute in the template only: a mark inside the data stays unchanged.
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: pieces[mark[1]], part("report.html"))


def _inert(data: Any) -> str:
    """JSON that can neither end the script element nor open a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _groups(layers: Sequence[Layer], found: Any, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The findings of a model, each with the row of its channel on the page; 0 if the channel is not shown."""
    made = []
    for group in groups(layers, found):
        shown = records[group.layer]["channels"]
        row = shown.index(group.channel) if group.channel in shown else 0
        made.append(group._asdict() | {"row": row})
    return made


def _record(layer: Layer, found: list[Finding], limit: int, few: int) -> dict[str, Any]:
    shown = _chosen(layer, [f.channel for f in found if f.channel is not None], limit)
    place = {int(channel): i for i, channel in enumerate(shown)}
    return {
        "name": layer.name,
        "shape": layer.shape,
        "dtype": layer.dtype,
        "axis": layer.axis,
        "m": layer.m,
        "eps": layer.eps,
        "correction": layer.correction,
        "fixed": layer.fixed,
        "count": len(layer.columns["mu"]),
        "channels": shown.tolist(),
        "shares": _layer_shares(layer),
        "broken": is_broken(layer),
        "facts": layer_facts(layer),
        "findings": [
            {"kind": f.kind, "row": -1 if f.channel is None else place[f.channel], "reason": f.reason}
            for f in found[:FINDINGS]
            if f.channel is None or f.channel in place
        ],
        "findingsInAll": len(found),
        "columns": {k: _packed(v[shown], "f8" if k in _EXACT else "f4") for k, v in layer.columns.items()},
        "histograms": {k: _packed(_heights(v[shown]), "u1") for k, v in layer.histograms.items()},
        "sample": {k: _packed(v[shown, :few], v.dtype.str[1:]) for k, v in layer.sample.items()},
    }


def _interleaved(found: list[Finding]) -> list[Finding]:
    """Interleaved: the first finding of every kind, then the second of every kind, ..."""
    seen: Counter[str] = Counter()
    ranked = []
    for finding in found:
        seen[finding.kind] += 1
        ranked.append((seen[finding.kind], finding))
    return [finding for _, finding in sorted(ranked, key=lambda entry: entry[0])]


def _chosen(layer: Layer, striking: list[int], limit: int) -> NDArray[np.int64]:
    """The channels to show: all, or at most `limit`, half of them with findings and the others evenly spaced."""
    count = len(layer.columns["mu"])
    if count <= limit:
        return np.arange(count)
    kept = list(dict.fromkeys(striking))[: limit // 2]
    spread = np.linspace(0, count - 1, limit - len(kept)).round().astype(int)
    return np.unique(np.concatenate([np.asarray(kept, dtype=np.int64), spread]))


def _layer_shares(layer: Layer) -> list[float] | None:
    """The shares of the energy of the layer's incoming gradient: kept, removed by the mean and the variance path."""
    if not layer.has_gradient or is_broken(layer):
        return None
    direct = layer.columns["direct"]
    good = np.isfinite(direct) & np.isfinite(layer.columns["kept"])
    largest = direct[good].max(initial=0.0)
    if largest == 0:  # gamma or dy is 0: no energy to share
        return None
    energy = (direct[good] / largest) ** 2
    return [
        float(np.sum(energy * layer.columns[k][good]) / energy.sum())
        for k in ("kept", "by_mean", "by_variance")
    ]


def _heights(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bar heights from 0 to 255; at least 1 unless the bin is empty."""
    tallest = np.maximum(counts.max(axis=1, keepdims=True), 1)
    return np.asarray(np.ceil(counts / tallest * 255), dtype=np.int64)


def _packed(array: NDArray[Any], kind: str) -> list[Any]:
    """[dtype, elements per channel, base64 of the little-endian elements]: exact, NaN included."""
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(array, dtype=f"<{kind}")
    width = 1 if data.ndim == 1 else data.shape[1]
    return [kind, width, base64.b64encode(data.tobytes()).decode("ascii")]
