"""One self-contained HTML page about a diagnosis, from its dictionary and web/ (HTML, CSS).

Nothing is judged here, and no model is seen: the page shows `Diagnosis.values()`. It makes no network requests, which
its content security policy enforces, and every name and sentence in the dictionary is inserted as text (autoescape).
"""

from collections.abc import Iterable, Mapping, Sequence
from math import inf, isfinite, isinf, isnan
from typing import Any, NamedTuple

from xhat.templates import filled
from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import CAUSES

__all__ = ["render"]

_MODES = {
    "evaluation": ("Evaluation", "model.eval(): the running statistics"),
    "batch": ("Batch", "evaluation with the statistics of each batch"),
    "pooled": ("Pooled", "evaluation with the exact statistics of all these batches"),
    "train": ("Training", "model.train(): the statistics of each batch, and dropout"),
}
_MEASURED = {
    "loss": "The mean loss of the batches: less is better. No mode has changed the model.",
    "distance": "How far the outputs are from those of evaluation, relative to their size. No mode has changed "
    "the model.",
}
_READING = {
    "pooled is better than evaluation": "The running statistics are wrong, and the weights are fine.",
    "batch is better than evaluation and pooled": "The batches are not alike: no single mean and variance fits all.",
    "evaluation is better than batch": "The batches are too small, or unlike, for their own statistics.",
    "batch is better than training": "Dropout or noise changes the variance that a batch norm sees.",
    "all are alike": "Batch norm is not at fault.",
}


class _Column(NamedTuple):
    """A column of the table of layers; the value at which a bar is full, unless a layer has a larger one."""

    name: str
    meaning: str
    full: float | None


_COLUMNS = {
    "shift": _Column(
        "shift", "the distance of the running mean from the pooled mean, in standard deviations", at.AGREES
    ),
    "log_variance": _Column(
        "log var", "the logarithm of the ratio of the pooled and the running variance", at.AGREES
    ),
    "icc": _Column(
        "icc",
        "the scatter of the batches' means over that of shuffled samples: 1 if batches are alike",
        at.NOT_ALIKE,
    ),
    "noise": _Column("noise", "the scatter of the batches' means, in standard deviations", at.NOISE),
    "left": _Column("left", "the weight that the initial running statistics still have", 1.0),
    "m": _Column("values", "values per channel and batch", None),
    "repair": _Column("alone", "what is compared, with the pooled statistics in this layer alone", None),
}


def render(diagnosis: Mapping[str, Any]) -> str:
    """The page about a diagnosis (the dictionary of `Diagnosis.values`), as text that UTF-8 can encode."""
    parts = _verdict(diagnosis) | _modes(diagnosis) | _found(diagnosis) | _layers(diagnosis)
    return filled("xhat.torch.doctor", "doctor", "diagnose", "doctor", **parts)


def _verdict(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """The headline: the worst severity (a note is no harm), the sentence, and what was looked at."""
    severities = [finding["severity"] for finding in diagnosis["findings"]]
    badge = next((s for s in ("harmful", "risk") if s in severities), "healthy")
    batches, layers = diagnosis["batches"], len(diagnosis["layers"])
    if not layers and not severities:
        badge = "nothing to judge"
    counted = (("harmful", "harmful"), ("risk", "risks"), ("note", "notes"))
    counts = [_count(n, one, many) for one, many in counted if (n := severities.count(one))]
    return {
        "model": diagnosis["model"],
        "summary": diagnosis["summary"],
        "tone": badge if badge != "nothing to judge" else "note",
        "badge": badge,
        "facts": [
            diagnosis["model"],
            _count(layers, "batch norm"),
            *([_count(batches, "batch", "batches")] if batches else []),
            *counts,
        ],
        "measured_on": batches,
        "judged": not diagnosis["not_judged"],
        "not_judged": diagnosis["not_judged"],
    }


def _modes(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: diagnosis["modes"].get(key) for key in _MODES}
    spans = _spans(values.values())
    rows = [
        {"key": key, "name": _MODES[key][0], "meaning": _MODES[key][1], "value": _say(value), "span": span}
        for (key, value), span in zip(values.items(), spans, strict=True)
    ]
    measured = any(value is not None for value in values.values())
    return {
        "modes": rows if measured else [],
        "measured": _MEASURED[diagnosis["quantity"]],
        "reading": _READING.items(),
    }


def _found(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    return {"findings": [_finding(found) for found in diagnosis["findings"]]}


def _finding(found: Mapping[str, Any]) -> dict[str, Any]:
    meaning = CAUSES.get(found["cause"], found["cause"])
    proof = found["proof"]
    if proof is not None:
        before, after = _spans((proof["before"], proof["after"]))
        proof = {
            "quantity": proof["quantity"],
            **{key: _say(proof[key]) for key in ("before", "after")},
            "before_span": before,
            "after_span": after,
        }
    evidence = [(name.replace("_", " "), _say(value)) for name, value in found["evidence"].items()]
    shown = {
        "title": meaning[:1].upper() + meaning[1:],
        "layers": [path or "the model" for path in found["layers"]],
        "unlisted": max(0, found["evidence"].get("layers", 0) - len(found["layers"])),
    }
    return {**found, **shown, "proof": proof, "evidence": evidence}


def _layers(diagnosis: Mapping[str, Any]) -> dict[str, Any]:
    """The table of layers; a column that is unknown for all of them is left out."""
    layers, findings = diagnosis["layers"], diagnosis["findings"]
    known = {k: c for k, c in _COLUMNS.items() if any(layer.get(k) is not None for layer in layers)}
    cells = [_cells(column, [layer.get(key) for layer in layers]) for key, column in known.items()]
    rows = []
    for place, layer in enumerate(layers):
        found = [i for i, f in enumerate(findings, 1) if layer["layer"] in f["layers"]]
        row = {"path": layer["layer"] or "the model", "facts": _facts(layer), "found": found}
        row["tone"] = findings[found[0] - 1]["severity"] if found else ""
        rows.append(row | {"cells": [column[place] for column in cells]})
    return {"layers": rows, "columns": list(known.values())}


def _cells(column: _Column, values: list[float | None]) -> list[dict[str, Any]]:
    spans = [None] * len(values) if column.full is None else _spans(values, column.full)
    return [
        {"name": column.name, "value": _say(value), "span": span}
        for value, span in zip(values, spans, strict=True)
    ]


def _facts(layer: Mapping[str, Any]) -> str:
    """Class, channels, calls and mode, as far as they are known."""
    calls, mode = layer["calls"], {True: "in training", False: "in evaluation"}.get(layer["training"])
    called = {None: None, 0: "never called", 1: "one call"}.get(calls, f"{_say(calls)} calls")
    frozen = "frozen" if layer["frozen"] else None
    known = (layer["class"], _count(layer["channels"], "channel"), called, mode, frozen)
    return ", ".join(fact for fact in known if fact)


class _Span(NamedTuple):
    """A bar in per cent of its track; `beyond` if its value is infinite."""

    start: float
    size: float
    beyond: bool


def _spans(values: Iterable[float | None], full: float = 0.0) -> list[_Span | None]:
    """Bars on one linear scale from zero to `full` or the largest value, and to the other side if one is negative.

    None where there is no number.
    """
    given = list(values)
    finite = [value for value in given if value is not None and isfinite(value)]
    low, high = min(0.0, *finite, 0.0), max(full, *finite, 0.0)
    length = (high - low) or inf

    def span(value: float | None) -> _Span | None:
        if value is None or isnan(value):
            return None
        if isinf(value):
            return _Span(0, 100, True)
        start = (min(value, 0) - low) / length
        return _Span(round(100 * start, 2), round(100 * abs(value) / length, 2), False)

    return [span(value) for value in given]


def _say(value: Any) -> str:
    """A value in words: numbers with four digits, sequences by their first elements."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e7):
        value = int(value)
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        text = "NaN" if isnan(value) else "∞" if value == inf else "−∞" if value == -inf else f"{value:.4g}"
        return text.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-").replace("-", "−")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_say(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_say, value[:8])) + (f", and {len(value) - 8} more" if len(value) > 8 else "")
    return str(value)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
