"""What stands out in a whole model: findings grouped over its layers, and where values are first not finite.

Only counting lives here; the rules are in `findings`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xhat.lens.reporter.data import Layer
from xhat.lens.reporter.findings import Finding

__all__ = ["Group", "first_not_finite", "groups", "is_broken", "layer_facts"]

_NAMED = 3  # layers that are named one by one


class Group(NamedTuple):
    """All findings of one kind: where they are in words, the reason of the worst, and its layer and channel."""

    kind: str
    where: str
    reason: str
    layer: int
    channel: int | None


def groups(layers: Sequence[Layer], found: Sequence[Sequence[Finding]]) -> list[Group]:
    """One group for each kind of finding, in the order of the rules; found[i] are the findings of layers[i]."""
    kinds = sorted({(f.rank, f.kind) for findings in found for f in findings})
    names = [layer.name for layer in layers]
    return [_group(kind, names, found) for _, kind in kinds]


def _group(kind: str, names: list[str], found: Sequence[Sequence[Finding]]) -> Group:
    of_kind = {i: [f for f in findings if f.kind == kind] for i, findings in enumerate(found)}
    of_kind = {i: chosen for i, chosen in of_kind.items() if chosen}
    layer = next(iter(of_kind))
    first = of_kind[layer][0]
    channels = sum(f.channel is not None for chosen in of_kind.values() for f in chosen)
    where = _where([names[i] for i in of_kind], names)
    if channels:
        where += f", {channels:,} channel{'s' * (channels != 1)}"
    return Group(kind, where, first.reason, layer, first.channel)


def _where(chosen: list[str], names: list[str]) -> str:
    """The layers in words: every one, all of one name, or the first ones."""
    if len(chosen) == 1:
        return chosen[0]
    count = f"{len(chosen)} layers"
    ends = {name.rpartition(".")[2] for name in chosen}
    if len(chosen) == len(names):
        return f"all {count}"
    if len(ends) == 1 and len(chosen) > 2:
        (end,) = ends
        alike = [name for name in names if name.rpartition(".")[2] == end]
        if len(alike) == len(chosen):
            return f"{count} (every {end})"
    more = len(chosen) - _NAMED
    return f"{count} ({', '.join(chosen[:_NAMED])}{f' and {more} more' if more > 0 else ''})"


def is_broken(layer: Layer) -> bool:
    """Whether no channel of the layer has finite moments."""
    return not np.isfinite(layer.columns["mu"] + layer.columns["var"]).any()


def first_not_finite(layers: Sequence[Layer]) -> dict[str, Any] | None:
    """The first place in the order of the computation that has NaN or infinity: {"text", "layer"}; None if none has."""
    for i, layer in enumerate(layers):
        for what, columns in (("the input of", ("min", "max")), ("γ of", ("gamma",)), ("β of", ("beta",))):
            bad = _bad(layer, columns)
            if bad.any():
                return _place(f"{what} {layer.name}", bad, i)
    for i, layer in reversed(list(enumerate(layers))):  # the backward pass comes from the loss
        bad = _bad(layer, ("dy_min", "dy_max")) if layer.has_gradient else np.zeros(1, bool)
        if bad.any():
            return _place(f"the gradient at the output of {layer.name}", bad, i)
    return None


def _bad(layer: Layer, columns: tuple[str, ...]) -> np.ndarray:
    return np.asarray(np.any([~np.isfinite(layer.columns[name]) for name in columns], axis=0))


def _place(what: str, bad: np.ndarray, layer: int) -> dict[str, Any]:
    return {"text": f"{what} ({int(bad.sum()):,} of {bad.size:,} channels)", "layer": layer}


def layer_facts(layer: Layer) -> dict[str, float | None]:
    """Numbers of a layer for the curves over all layers: the norms of dy and dx, and the batch against running moments.

    gapMean: the root mean square over the channels of the distance of the batch's mean from the running one, in running
    standard deviations; gapVar: the mean factor between the variances, at least 1.
    """
    columns = layer.columns
    facts: dict[str, Any] = {name: _norm(columns[name]) for name in ("dy", "dx") if name in columns}
    if "gap_mean" in columns:
        with np.errstate(all="ignore"):
            facts["gapMean"] = float(np.sqrt(np.mean(columns["gap_mean"] ** 2)))
            facts["gapVar"] = float(np.exp(np.mean(np.abs(np.log(columns["gap_var"])))))
    return {
        name: value if value is not None and np.isfinite(value) else None for name, value in facts.items()
    }


def _norm(lengths: np.ndarray) -> float:
    """The norm of all channels from those of each; scaled, so that the squares can't overflow."""
    largest = float(np.abs(lengths).max())
    return largest * float(np.linalg.norm(lengths / largest)) if 0 < largest < np.inf else largest
