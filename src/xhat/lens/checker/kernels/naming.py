"""Names for the mistakes in results that came without their code: by the catalogue, by lost values, by rounding.

`search` finds sets of mistakes; nothing is judged here. Large batches are searched on their worst channels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xhat.lens.checker.calling.adapter import Adapter
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.calling.runs import ArraySpec, RunResult
from xhat.lens.checker.diagnosis.comparison import Comparison
from xhat.lens.checker.diagnosis.diagnose import found_mistakes
from xhat.lens.checker.diagnosis.fit import Fit
from xhat.lens.checker.diagnosis.search import BACKWARD, LIMIT, Explanation, Predictor, flat
from xhat.lens.checker.diagnosis.unexplained import localize
from xhat.lens.checker.expected.bounds import bounds
from xhat.lens.checker.expected.probes import UNIT, Array
from xhat.lens.checker.expected.reference import forward
from xhat.lens.checker.expected.steps import CLOSED, FORMULATIONS
from xhat.lens.checker.faults import TITLES
from xhat.lens.checker.kernels.lost import part_of_the_sum
from xhat.lens.checker.verdict import FoundMistake

__all__ = ["explain"]

_SEARCHED = 8_000  # values that are searched for single mistakes
_PAIRS = 2_000  # values that are searched for pairs
_COARSEST = 6e-2  # a search with a wider tolerance would name what is not there
_SUMMED = ("dbeta", "dgamma")


def explain(
    c: Comparison, wrong: list[str], correction: int, evaluation: bool
) -> tuple[list[FoundMistake], list[str]]:
    """The mistakes that explain the wrong outputs, and sentences about those that nothing explains."""
    mistakes: list[FoundMistake] = []
    if not evaluation:
        mistakes = [m for m in _searched(c, correction) if set(m.outputs) & set(wrong)]
        mistakes = [replace(m, outputs=tuple(o for o in m.outputs if o in wrong)) for m in mistakes]
    named = {output for m in mistakes for output in m.outputs}
    rest = [output for output in wrong if output not in named]
    if rest and not evaluation and _cancels(c, rest, correction):
        name = "one-pass variance cancelling"
        return [*mistakes, FoundMistake((name,), tuple(rest), *TITLES[name])], []
    sentences = _undefined(c, rest)
    rest = [output for output in rest if np.isfinite(c.yours[output]).all()]
    if not evaluation:
        found, rest = _from_sums(c, rest, correction)
        sentences += found
    return mistakes, sentences + [_described(c, output) for output in rest]


def _undefined(c: Comparison, rest: list[str]) -> list[str]:
    """Where results are not finite: the channels, and whether none of their values is."""
    found = []
    for output in rest:
        bad = ~np.isfinite(c.yours[output])
        if bad.any():
            axis = c.probe.layout.axis
            channels = np.flatnonzero(bad.any(axis=tuple(a for a in range(bad.ndim) if a != axis)))
            first = tuple(map(int, np.argwhere(bad)[0]))
            where = (
                f"channels {channels[0]} to {channels[-1]}" if len(channels) > 1 else f"channel {channels[0]}"
            )
            found.append(
                f"{output}: {int(bad.sum()):,} of {bad.size:,} values are not finite, in {where}, "
                f"the first at {first}: never written, or undefined"
            )
    return found


def _from_sums(c: Comparison, rest: list[str], correction: int) -> tuple[list[str], list[str]]:
    """Sentences about sums of a part of the values and about 16-bit arithmetic, and the outputs that remain."""
    lost = {output: text for output in rest if (text := _lost(c, output))}
    sentences = [f"{output}: {text}" for output, text in lost.items()]
    rest = [output for output in rest if output not in lost]
    if lost and rest:
        return [*sentences, f"{', '.join(rest)}: off as well; such sums make them"], []
    f = forward(c.probe, correction)
    for dtype in ("float16", "bfloat16"):
        coarse = bounds(
            c.probe, f, c.paths, correction, arithmetic=UNIT[dtype], sums=UNIT["float32"], results={}
        )
        rounded = [
            o
            for o in rest
            if o in coarse
            and coarse[o].max() < 0.5 * np.abs(c.exact[o]).max()  # else anything would be rounding
            and (np.abs(c.difference(o)) <= coarse[o]).all()
            and _is_noise(c, o)
        ]
        if rounded:
            sentences.append(
                f"{', '.join(rounded)}: right to the digits of {dtype} only; compute in float32, and round once"
            )
        rest = [output for output in rest if output not in rounded]
    return sentences, rest


def _searched(c: Comparison, correction: int) -> list[FoundMistake]:
    part = _worst_channels(c)
    judged = {
        o: part.yours[o] for o in ("y", *BACKWARD) if o in part.yours and np.isfinite(part.yours[o]).all()
    }
    if not judged or c.probe.count() < 3:  # two values tell no mistakes apart
        return []
    small = part.probe.x.size <= _PAIRS
    best: list[Explanation] = []
    for limit in range((LIMIT if small else 1) + 1):
        found = [
            e
            for candidate in (correction, 1 - correction)
            if part.probe.count() > candidate
            for e in _explanations(part, judged, candidate, limit)
        ]
        least = min((e.cost for e in found), default=(1, 0))
        best = [e for e in found if e.cost == least]
        if best and least[0] == 0:
            break
    if not best:
        return []
    runner = Runner(None, None, Adapter(), ArraySpec("numpy", "float64", part.probe.layout.name))
    fit = Fit(runner, (part.probe,), {0: [RunResult(outputs=judged)]}, part.probe.eps, None, True, best=best)
    return found_mistakes(fit)


def _explanations(c: Comparison, judged: dict[str, Array], correction: int, limit: int) -> list[Explanation]:
    """The explanations of all outputs by at most `limit` mistakes in each, for one correction."""
    predictor = Predictor((c.probe,), correction)

    def tolerance(output: str) -> float:
        return min(_COARSEST, float(np.max(c.allowed[output])) / (predictor.scale(output) or 1.0) + 1e-12)

    forwards: list[tuple[object, ...]] = [()]
    outputs: dict[str, tuple[frozenset[str], ...]] = {}
    if "y" in judged:
        forwards = list(predictor.explain("y", flat([judged["y"]]), tolerance("y"), limit))
        if not forwards:
            forwards, outputs = [()], {"y": ()}
    found = []
    for mistakes in forwards:
        for formulation in FORMULATIONS if mistakes else (CLOSED,):
            own = dict(outputs)
            for output in (o for o in judged if o != "y"):
                sets = predictor.explain(
                    output,
                    flat([judged[output]]),
                    tolerance(output),
                    min(limit, 1) if mistakes else limit,
                    mistakes,  # type: ignore[arg-type]
                    formulation,
                )
                own[output] = tuple(dict.fromkeys(frozenset(m.name for m in chosen) for chosen in sets))
            found.append(Explanation(correction, mistakes, formulation, own))  # type: ignore[arg-type]
    return found


def _worst_channels(c: Comparison) -> Comparison:
    """The batch itself if it is small, else its worst channels."""
    p = c.probe
    if p.x.size <= _SEARCHED:
        return c
    worst: Array = np.zeros(p.channels)
    for output in c.yours:
        ratio = np.nan_to_num(np.abs(c.difference(output)) / c.allowed[output], nan=0.0, posinf=0.0)
        axes = tuple(a for a in range(ratio.ndim) if a != p.layout.axis)
        worst = np.maximum(worst, ratio.max(axis=axes))
    chosen = np.sort(np.argsort(-worst)[: max(2, _SEARCHED // p.count())])

    def part(values: Array) -> Array:
        return (
            values
            if values.shape[p.layout.axis] == 1 != p.channels
            else np.take(values, chosen, p.layout.axis)
        )

    names = ("x", "dy", "gamma", "beta", "running_mean", "running_var")
    arrays: dict[str, Any] = {name: part(getattr(p, name)) for name in names}
    return Comparison(
        c.title,
        replace(p, **arrays),
        {o: part(v) for o, v in c.yours.items()},
        {o: part(v) for o, v in c.exact.items()},
        {o: part(v) for o, v in c.allowed.items()},
        type(c.paths)(*(part(v) for v in c.paths)),
    )


def _is_noise(c: Comparison, output: str) -> bool:
    """Whether the error is no multiple of the exact output, as rounding is none."""
    off, exact = c.difference(output).ravel(), c.exact[output].ravel()
    return bool((off @ exact) ** 2 < 0.5 * (off @ off) * (exact @ exact))


def _cancels(c: Comparison, wrong: list[str], correction: int) -> bool:
    """Whether a mean that is far from 0 and a one-pass variance explain the errors."""
    untouched = {"dbeta", "mean"} & set(wrong)  # no variance is in them
    if ("y" in c.yours and "y" not in wrong) or untouched or c.probe.count() < 3:
        return False
    f = forward(c.probe, correction)
    far = (np.abs(f.mu) / np.sqrt(np.maximum(f.var, np.finfo(float).tiny))).max()
    if far < 30:
        return False
    allowed = bounds(c.probe, f, c.paths, correction, arithmetic=UNIT["float32"], results={}, one_pass=True)
    lost = allowed["var"] >= f.var / 4  # nothing is left of the variance, which may even be negative
    return all(
        (lost | (np.abs(c.difference(o)) <= allowed[o] + c.allowed[o])).all() for o in wrong if o in allowed
    )


def _described(c: Comparison, output: str) -> str:
    exact = c.exact[output]
    if np.abs(exact).max() <= c.allowed[output].max():
        largest = float(np.abs(c.yours[output]).max())
        return f"{output}: {largest:.3g} where 0 is expected, since a channel has {c.probe.count():,} values"
    if output in ("mean", "var", "rstd", "std"):
        return (
            f"{output}: can't name the mistake; it is off by {c.ratio(output):.3g} times the rounding allowed"
        )
    return localize(output, [c.yours[output]], [exact], [c.paths], (c.probe,))


def _lost(c: Comparison, output: str) -> str | None:
    """Whether a sum has a part of its terms: dbeta, dgamma, the mean, and the mean that y was made with."""
    p = c.probe
    axis = p.layout.axis

    def rows(values: Array) -> Array:
        return np.moveaxis(np.broadcast_to(values, p.x.shape), axis, 0).reshape(p.channels, -1)

    if output in _SUMMED:
        with_xhat = (p.x - c.exact["mean"]) * c.exact["rstd"] if output == "dgamma" else 1.0
        found, terms = c.yours[output].ravel(), rows(p.dy * with_xhat)
        return part_of_the_sum(terms, found, c.allowed[output].ravel())
    if output == "mean":
        return part_of_the_sum(rows(p.x) / p.count(), c.yours["mean"].ravel(), c.allowed["mean"].ravel())
    if output == "y":
        return _mean_of_y(c, rows)
    return None


def _mean_of_y(c: Comparison, rows: Callable[[Array], Array]) -> str | None:
    """The same for the mean that y was made with: y = beta + slope (x - mu), where y is such a line."""
    x, y, beta = rows(c.probe.x), rows(c.yours["y"]), c.probe.beta.reshape(-1, 1)
    if not np.isfinite(y).all():
        return None
    ends = np.stack([x.argmin(axis=1), x.argmax(axis=1)], axis=1)
    run, rise = (np.diff(np.take_along_axis(v, ends, axis=1), axis=1) for v in (x, y))
    slope = rise / run
    mu = x[:, :1] - (y[:, :1] - beta) / slope
    allowed = rows(c.allowed["y"]).max(axis=1, keepdims=True)
    if not (np.abs(y - beta - slope * (x - mu)) <= 4 * allowed).all():
        return None
    lost = part_of_the_sum(x / c.probe.count(), mu.ravel(), (8 * allowed / np.abs(slope)).ravel())
    return lost and f"its mean is made of a part of the values: {lost}"
