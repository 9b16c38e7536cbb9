"""The first wrong line: the first place whose value is no exact step, and whose repair makes a wrong output right.

Every value that the code computes is recognized by its numbers (`values`). A value that is not recognized is no
mistake by itself, since right code has unusual steps: it is one only if a wrong output follows from it, no exact value
does, and the output is right once the value is replaced by an exact one. The replacements are run, on two batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from xhat.lens.checker import reference
from xhat.lens.checker.adapter import Unjudged
from xhat.lens.checker.powers import Scales, scales_of
from xhat.lens.checker.probes import Array, Probe
from xhat.lens.checker.runner import Runner
from xhat.lens.checker.steps import Steps, arrangements, steps_of
from xhat.lens.checker.values import Value, by_channel, cost, multiple_of, reduced, values_of
from xhat.lens.checker.verdict import WrongLine
from xhat.lens.checker.watch import Moment, Watch, files_of, watching

__all__ = ["wrong_lines"]

_LINES = 3  # shown, at most
_RUNS = 4000  # replacements tried, at most; slow frameworks get fewer
_SLOW_RUNS = 400
# A variable of this name (in lower case, without underscores) should be this step.
_STEPS = {
    "μ": "mu mean batchmean samplemean mub xmean",
    "σ²": "var variance sigma2 sigmasq batchvar samplevar",
    "√(σ² + ε)": "std stddev sqrtvar",
    "r": "rstd ivar invstd istd invvar invstddev r",
    "d√(σ² + ε)": "dsqrtvar dstd dstddev dsigma",
    "Σ dx̂ (x - μ)": "divar drstd dinvstd dinvvar divstd",
    "x̂": "xhat xnorm xn xnormalized normalized",
    "x - μ": "xmu xcentered xc centered xcentred",
    "dx̂": "dxhat dxnorm dxn dnorm dxnormalized gradxhat gradnorm",
    "dσ²": "dvar dvariance dsigma2 dsigmasq gradvar dldvar",
    "dμ": "dmu dmean gradmean dldmu",
    "Σ dy x̂": "dgamma dweight dscale ggamma gradgamma gradweight dw dg",
    "Σ dy": "dbeta dbias dshift gradbeta gradbias db",
}
_BY_NAME = {name: step for step, names in _STEPS.items() for name in names.split()}


class Repair(NamedTuple):
    """A value, and what it has to be on each batch so that an output is right."""

    value: Value
    plans: list[dict[Moment, Array]]
    expected: str
    strong: bool  # it is an exact step


@dataclass
class _Search:
    """The watched code on two batches, and what is known of it."""

    runner: Runner
    watch: Watch
    batch: tuple[Probe, ...]
    correction: int
    tolerance: float
    steps: list[Steps] = field(default_factory=list)
    exact: list[dict[str, Array]] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    plans: list[dict[Moment, Array]] = field(default_factory=list)  # repairs so far
    left: int = _RUNS
    scales: Scales | None = None

    def run(self, k: int, plan: dict[Moment, Array], recording: bool = False) -> dict[str, Array] | None:
        """The outputs on batch k with the repairs so far and this plan; None if the code fails with it."""
        self.left -= 1
        self.watch.records.clear()
        self.watch.plan, self.watch.recording = self.plans[k] | plan, recording
        try:
            return self.runner.run(self.batch[k], self.correction).outputs
        except (Unjudged, FloatingPointError):
            return None
        finally:
            self.watch.plan, self.watch.recording = {}, True

    def right(self, k: int, outputs: dict[str, Array] | None) -> set[str]:
        """The outputs that are exact on batch k."""
        return {
            o
            for o, e in self.exact[k].items()
            if outputs is not None
            and o in outputs
            and outputs[o].size == e.size
            and np.abs(outputs[o].reshape(e.shape) - e).max()
            <= 10 * self.tolerance * max(1.0, np.abs(e).max())
        }

    def repairs(
        self, value: Value, numbers: list[Array], wrong: set[str], right: set[str]
    ) -> list[dict[Moment, Array]]:
        """The plans that make a wrong output right, and leave the right ones right; empty if there are none."""
        for way in range(max(1, len(value.arranged[0]))):
            plans = []
            for k in range(len(self.batch)):
                if value.arranged[k] and way >= len(value.arranged[k]):
                    break
                plan = value.plan(k, numbers[k], way)
                now = self.right(k, self.run(k, plan))
                if not (now & wrong and right <= now) or (plans and not now & wrong):
                    break
                plans.append(plan)
            if len(plans) == len(self.batch):
                return plans
        return []


def wrong_lines(
    runner: Runner, batch: tuple[Probe, ...], correction: int, wrong: set[str], tolerance: float
) -> tuple[tuple[WrongLine, ...], list[str]]:
    """The lines from which the wrong outputs follow, and sentences about what could not be examined."""
    files = files_of(runner.forward, runner.backward)
    if not files:
        return (), ["The source of the code is not available, so no line of it was examined."]
    with watching(runner, files) as (watched, watch):
        search = _Search(watched, watch, batch, correction, tolerance)
        search.left = _SLOW_RUNS if runner.spec.kind == "jax" else _RUNS
        problem = _observe(search)
        if problem:
            return (), [problem]
        found: list[WrongLine] = []
        while wrong and len(found) < _LINES:
            repairs = _first(search, wrong)
            found += [_line(search, repair) for repair in repairs]
            if not all(any(repair.plans) for repair in repairs) or not repairs:
                break
            for repair in repairs:
                search.plans = [a | b for a, b in zip(search.plans, repair.plans, strict=True)]
            wrong = wrong - search.right(0, search.run(0, {}))
            _observe(search)
        return tuple(dict.fromkeys(found or _detached(search, wrong))), []


def _observe(search: _Search) -> str | None:
    """Run the code on all batches, and recognize what it computes."""
    seen = []
    search.plans = search.plans or [{} for _ in search.batch]
    for k in range(len(search.batch)):
        search.run(k, {}, recording=True)
        seen.append(search.watch.seen())
    if search.watch.overflowed:
        return "The code computes too many values one by one for its lines to be examined."
    if not seen[0]:
        return "The lines of the code run inside of a compiled function, where their values can't be seen."
    search.steps = [steps_of(p, search.correction) for p in search.batch]
    forwards = [reference.forward(p, search.correction) for p in search.batch]
    search.scales = scales_of(list(zip(search.batch, forwards, strict=True)), search.correction)
    names = {"y": "y", "dx": "dx", "dgamma": "Σ dy x̂", "dbeta": "Σ dy"}
    search.exact = [{o: (s.whole | s.by_channel)[n] for o, n in names.items()} for s in search.steps]
    search.values = values_of(seen, search.watch.sites, search.steps, search.tolerance)
    return None


def _wanted(value: Value, steps: Steps) -> str | None:
    """The step that a variable of this name should be, if its value has the right kind."""
    name = value.site.name.rpartition(".")[2].lower().replace("_", "")
    step = _BY_NAME.get(name)
    return step if step and value.kind != "number" and step in steps.of_kind(value.kind) else None


# ---------------------------------------------------------------------------------------------- search


class _Effect(NamedTuple):
    """What a change of a value changes: outputs, and the numbers of the outputs for each batch."""

    outputs: set[str]
    cleared: bool  # an exact value or a right output follows from it
    slopes: list[dict[str, Array]]  # d output / d (share of the value)


def _first(search: _Search, wrong: set[str]) -> list[Repair]:
    """The first repair; or two that make an output right together; or the output itself."""
    plain = [search.run(k, {}) for k in range(len(search.batch))]
    right = set.intersection(*(search.right(k, o) for k, o in enumerate(plain)))
    weak: Repair | None = None
    last: Repair | None = None
    suspects: list[tuple[Value, _Effect]] = []
    outputs = _outputs(search, plain, wrong)
    for index, value in enumerate(search.values):
        if search.left <= 0:
            break
        wanted = _wanted(value, search.steps[0])
        misnamed = wanted is not None and wanted not in value.names
        output = outputs.get(index)
        if not _is_suspect(search, value) or (
            value.names and value.kind != "number" and not misnamed and not output
        ):
            continue
        effect = _effect(search, value, index, plain, right)
        if not effect.outputs & wrong or (effect.cleared and not misnamed and not output):
            continue
        repair = _repair(search, value, effect, wrong, right, plain, wanted if misnamed else output)
        if repair is None or not repair.strong:
            suspects.append((value, effect))
        if repair is None:
            continue
        if not repair.strong:
            weak = weak or repair
        else:
            term = _addend(search, repair, wrong, right, plain) if value.site.role == "sum" else None
            if term or not (output or repair.expected in ("dx", "y")):
                return _also_misnamed(search, suspects, term or repair) or [term or repair]
            last = repair
            break
    if weak:
        return [weak]
    strange = _reduced(search, suspects)
    if last is None:
        return strange
    return (
        strange
        or _also_misnamed(search, suspects, last)
        or _misplaced(search, last, wrong, right, plain)
        or _pair(search, suspects, wrong, right, plain)
        or [last]
    )


def _misplaced(
    search: _Search, last: Repair, wrong: set[str], right: set[str], plain: list[dict[str, Array] | None]
) -> list[Repair]:
    """A variable whose value is an exact step, but another one than is needed there: a multiple of it."""
    for index, value in enumerate(search.values[: search.values.index(last.value)]):
        named = _wanted(value, search.steps[0]) in value.names
        if not value.names or not value.site.name or named or value.site.role in ("seen", "copy"):
            continue
        if value.kind not in ("whole", "by channel"):
            continue
        effect = _effect(search, value, index, plain, right)
        if effect.cleared or not effect.outputs & wrong:
            continue
        repair = _scaled(search, value, effect.slopes, wrong, right, plain)
        if repair and repair.strong:
            return [repair]
    return []


def _also_misnamed(search: _Search, suspects: list[tuple[Value, _Effect]], repair: Repair) -> list[Repair]:
    """An earlier value that is not what its variable's name says, if the repaired one is simpler once this is right."""
    kind = repair.value.kind
    if kind not in ("whole", "by channel"):
        return []
    before = _described(search, [a[0].value for a in repair.value.arranged], kind)[1]
    for value, _ in suspects:
        wanted = _wanted(value, search.steps[0])
        if wanted is None or value.kind not in ("whole", "by channel"):
            continue
        plans = [value.plan(k, s.of_kind(value.kind)[wanted]) for k, s in enumerate(search.steps)]
        after = []
        for k, plan in enumerate(plans):
            search.run(k, plan, recording=True)
            seen, moments = search.watch.seen(), repair.value.moments[k]
            if all(m in seen for m in moments):
                raw = np.stack([seen[m] for m in moments]) if len(moments) > 1 else seen[moments[0]]
                after += [w.value for w in arrangements(raw, search.batch[k])][:1]
        if len(after) == len(plans) and _described(search, after, kind)[1] < before:
            return [Repair(value, plans, wanted, True)]
    return []


def _reduced(search: _Search, suspects: list[tuple[Value, _Effect]]) -> list[Repair]:
    """A value whose shape is none of batch norm's, if it is known what it is."""
    for value, _ in suspects:
        shaped = value.kind in ("other", "whole") and not value.names
        text = reduced(value.raw[0], search.steps[0], 100 * search.tolerance) if shaped else None
        if text is not None:
            step = text.partition(" in the shape ")
            wanted = (
                f"{step[0]} with the channels along an axis of their own" if step[1] else "sums by channel"
            )
            return [Repair(value, [], wanted, True)]
    return []


def _detached(search: _Search, wrong: set[str]) -> list[WrongLine]:
    """The first exact step without a gradient, if PyTorch differentiates the code and only gradients are wrong."""
    own = search.runner.backward is None and search.runner.spec.kind == "torch" and "y" not in wrong
    known = [
        v for v in search.values if v.names and v.kind in ("whole", "by channel") and v.site.role != "addend"
    ]
    constant = {"γ", "β", "dy", "x"}
    flowing = [v for v in known if v.moments[0][-1].site not in search.watch.detached]
    if not own or not any(set(v.names) - constant for v in flowing):
        return []
    stopped = [v for v in known if v not in flowing and not set(v.names) & constant]
    return [
        WrongLine(
            v.site.function,
            v.site.line,
            v.site.source,
            v.site.name or v.site.text,
            f"{v.names[0]}, but no gradient flows through it",
            f"{v.names[0]} as a part of the graph",
        )
        for v in stopped[:1]
    ]


def _outputs(search: _Search, plain: list[dict[str, Array] | None], wrong: set[str]) -> dict[int, str]:
    """The places that give the wrong outputs their final values, and which steps they should be.

    For a variable that is returned, this is the line that set it, unless it is there what its name says.
    """
    found: dict[int, str] = {}
    for o in sorted(wrong):
        values = enumerate(search.values)
        equal = [k for k, v in values if v.site.role != "seen" and _is_output(search, v, plain, o)]
        if not equal:
            continue
        last, step = equal[-1], {"dgamma": "Σ dy x̂", "dbeta": "Σ dy"}.get(o, o)
        site = search.values[last].site
        origin = [k for k in equal[:-1] if site.text and search.values[k].site.name == site.text]
        named = _wanted(search.values[origin[-1]], search.steps[0]) if origin else None
        found[last if not origin or named in search.values[origin[-1]].names else origin[-1]] = step
    return found


def _is_output(search: _Search, value: Value, plain: list[dict[str, Array] | None], o: str) -> bool:
    """Whether a value is what the code returns as this output."""
    return value.kind == ("whole" if o in ("y", "dx") else "by channel") and all(
        p is not None
        and o in p
        and p[o].size == w[0].value.size
        and not _moved(w[0].value, p[o].reshape(w[0].value.shape), search)
        for p, w in zip(plain, value.arranged, strict=True)
    )


def _is_suspect(search: _Search, value: Value) -> bool:
    """Whether a value may be a mistake: not a term of a sum that is examined with it, nor the count itself."""
    role = value.site.role
    if value.kind == "number" or value.constant:
        exempt = {search.scales.letter if search.scales else "N", "ε"}
        return not value.constant and not exempt & set(value.names) and role != "addend"
    return role not in ("addend", "seen") and (role != "copy" or bool(value.site.name))


def _effect(
    search: _Search, value: Value, index: int, plain: list[dict[str, Array] | None], right: set[str]
) -> _Effect:
    """Half of the value is added to it. (A change of one element would move sums that a wrong factor does not.)"""
    slopes: list[dict[str, Array]] = []
    outputs: set[str] = set()
    cleared = False
    for k, base in enumerate(plain):
        raw = value.raw[k]
        more = raw * 1.5 if np.abs(raw).max() > 1e-9 else raw + 1.0
        changed = search.run(k, value.plan_of(k, more), recording=k == 0)
        if (
            changed is None
            or base is None
            or any(changed[o].shape != base[o].shape for o in base if o in changed)
        ):
            return _Effect(outputs, cleared, [])
        if k == 0:
            outputs = {o for o in changed if o in base and _moved(changed[o], base[o], search)}
            cleared = bool(outputs & right) or _clears(search, index)
        slopes.append({o: 2 * (changed[o] - base[o]) for o in outputs})
    return _Effect(outputs, cleared, slopes)


def _moved(a: Array, b: Array, search: _Search) -> bool:
    return a.shape != b.shape or bool(
        np.abs(a - b).max() > 100 * search.tolerance * max(1e-300, np.abs(b).max())
    )


def _clears(search: _Search, index: int) -> bool:
    """Whether a later exact value changed in the run that was recorded last."""
    seen = search.watch.seen()
    for later in search.values[index + 1 :]:
        if later.names and later.kind in ("whole", "by channel") and later.site.role != "addend":
            single = later.filled or len(later.moments[0]) == 1
            moments = later.moments[0][-1:] if single else later.moments[0]
            before = later.raw[0][None] if single else later.raw[0]
            for moment, old in zip(moments, before, strict=True):
                if moment in seen and _moved(seen[moment], old, search):
                    return True
    return False


# --------------------------------------------------------------------------------------------- repairs


def _repair(
    search: _Search,
    value: Value,
    effect: _Effect,
    wrong: set[str],
    right: set[str],
    plain: list[dict[str, Array] | None],
    wanted: str | None,
) -> Repair | None:
    """What this value has to be so that a wrong output is right; None if nothing that is tried repairs it."""
    if wanted is not None:
        exact = next((c for name, c in _candidates(search, value) if name == wanted), None)
        plans = search.repairs(value, exact, wrong, right) if exact else []
        if plans:
            return Repair(value, plans, wanted, True)
    if value.names and value.kind != "number":
        return None
    scaled = _scaled(search, value, effect.slopes, wrong, right, plain)
    if scaled:
        return scaled
    if (
        not value.site.name
        and value.site.role not in ("result", "sum")
        and value.kind not in ("number", "other")
    ):
        return None
    for name, candidates in _candidates(search, value):
        plans = search.repairs(value, candidates, wrong, right)
        if plans:
            return Repair(value, plans, name, True)
    return None


def _candidates(search: _Search, value: Value) -> Iterator[tuple[str, list[Array]]]:
    """The exact steps that may stand in the place of a value; for a value of another shape, in usual shapes."""
    if value.kind == "number":
        for name in search.steps[0].numbers:
            yield name, [np.asarray(s.numbers[name]) for s in search.steps]
    elif value.kind != "other":
        for name in search.steps[0].of_kind(value.kind):
            yield name, [s.of_kind(value.kind)[name] for s in search.steps]
    else:
        dims = value.raw[0].ndim if value.raw[0].size > 1 else search.batch[0].x.ndim
        for name in search.steps[0].by_channel:
            if dims == search.batch[0].x.ndim:
                yield name, [_wide(s.by_channel[name], s.probe) for s in search.steps]
            else:
                yield name, [s.by_channel[name] for s in search.steps]
        for name in search.steps[0].whole if value.raw[0].ndim == 2 else ():
            rows = [by_channel(s.whole[name], s.probe) for s in search.steps]
            last = all(v.shape[-1] == s.probe.channels for v, s in zip(value.raw, search.steps, strict=True))
            yield name, [r.T if last else r for r in rows]


def _wide(numbers: Array, p: Probe) -> Array:
    shape = [1] * p.x.ndim
    shape[p.layout.axis] = p.channels
    return numbers.reshape(shape)


def _shares(
    search: _Search, k: int, o: str, slopes: list[dict[str, Array]], base: dict[str, Array]
) -> Array | None:
    """The share of each value that has to be added for output o, by channel: E = sum of share x slope."""
    p, exact = search.batch[k], search.exact[k][o]
    error = by_channel(exact - base[o].reshape(exact.shape), p)
    rows = [by_channel(s[o].reshape(exact.shape), p) for s in slopes]
    found = np.array(
        [
            np.linalg.lstsq(np.array([r[c] for r in rows]).T, error[c], rcond=1e-9)[0]
            for c in range(p.channels)
        ]
    )
    fitted = sum(found[:, [i]] * row for i, row in enumerate(rows))
    near = 100 * search.tolerance * max(float(np.abs(exact).max()), float(np.abs(base[o]).max()))
    return found if np.abs(fitted - error).max() <= near else None


def _multiplied(value: Value, k: int, factors: Array, p: Probe) -> Array:
    numbers = value.arranged[k][0].value
    if value.kind == "number":
        return np.asarray(numbers * factors[0])
    return numbers * (factors if value.kind == "by channel" else _wide(factors, p))


def _scaled(
    search: _Search,
    value: Value,
    slopes: list[dict[str, Array]],
    wrong: set[str],
    right: set[str],
    plain: list[dict[str, Array] | None],
) -> Repair | None:
    """A repair by a factor for each channel, if downstream of this value everything is linear."""
    if value.kind == "other" or len(slopes) < len(search.batch) or not all(slopes):
        return None
    for o in sorted(wrong & set(slopes[0])):
        shares = [_shares(search, k, o, [slopes[k]], plain[k] or {}) for k in range(len(search.batch))]
        if any(s is None for s in shares):
            continue
        factors = [1 + s[:, 0] for s in shares if s is not None]
        if value.kind == "number" and any(np.ptp(f) > 1e-6 * np.abs(f).max() for f in factors):
            continue
        numbers = [
            _multiplied(value, k, f, p) for k, (f, p) in enumerate(zip(factors, search.batch, strict=True))
        ]
        plans = search.repairs(value, numbers, wrong, right)
        if not plans:
            continue
        expected, how = _described(search, numbers, value.kind)
        _, how_found = _described(search, [a[0].value for a in value.arranged], value.kind)
        if how == 0 or how < how_found:
            return Repair(value, plans, expected, how == 0)
    return None


def _described(search: _Search, numbers: list[Array], kind: str) -> tuple[str, float]:
    """What numbers are in words, and how far from a step: 0 for a step, more for a multiple, infinity for neither."""
    near = 100 * search.tolerance
    if kind == "number":
        for name, known in search.steps[0].numbers.items():
            exact = [known, *(s.numbers[name] for s in search.steps[1:])]
            if all(abs(float(n) - e) <= near * abs(e) for n, e in zip(numbers, exact, strict=True)):
                return name, 0.0
        return f"{float(numbers[0]):.6g}", float("inf")
    assert search.scales is not None
    found = multiple_of(numbers, search.steps, search.scales, near)
    if found is None:
        return "none of the exact values", float("inf")
    factor, step = found
    far = cost(factor)
    shown = (
        f"({step})" if far and any(sign in step for sign in (" - ", " + ")) and step[0] not in "(√" else step
    )
    return (
        f"{factor} × {shown}" if factor.number != -1 or factor.powers else f"-{shown}"
    ) if far else step, far


# ------------------------------------------------------------------------------- sums, and two at once


_PATHS = {"dx̂ r", "2 (x - μ) dσ²/N", "2 (x - μ) dσ²/m", "dμ/N", "dμ/m", "d(x - μ)"}


def _addend(
    search: _Search, last: Repair, wrong: set[str], right: set[str], plain: list[dict[str, Array] | None]
) -> Repair | None:
    """If one term of a wrong sum is a wrong multiple: the line where this term got its value."""
    place, end = last.value.site, search.values.index(last.value)
    for index in range(end - 1, -1, -1):
        term = search.values[index]
        site = term.site
        if site.role != "addend" or site.function != place.function or site.text not in place.text:
            continue
        if set(term.names) & _PATHS:
            continue
        before = search.values[:index]
        origin = [v for v in before if v.site.name == site.text and v.site.function == site.function]
        if not origin or _wanted(origin[-1], search.steps[0]) in term.names:
            continue
        effect = _effect(search, term, index, plain, set())
        repair = _scaled(search, term, effect.slopes, wrong, right, plain)
        if repair is None and effect.outputs & wrong:
            tried = ((n, search.repairs(term, c, wrong, right)) for n, c in _candidates(search, term))
            repair = next((Repair(term, plans, n, True) for n, plans in tried if plans), None)
        if repair:
            return repair._replace(value=origin[-1])
    return None


def _pair(
    search: _Search,
    suspects: list[tuple[Value, _Effect]],
    wrong: set[str],
    right: set[str],
    plain: list[dict[str, Array] | None],
) -> list[Repair]:
    """Two values that make an output right together."""
    usable = [
        (v, e)
        for v, e in suspects
        if v.kind in ("whole", "by channel") and len(e.slopes) == len(search.batch)
    ]
    for i, (a, of_a) in enumerate(usable):
        for b, of_b in usable[i + 1 :]:
            for o in sorted(wrong & of_a.outputs & of_b.outputs):
                found = _together(search, (a, b), (of_a, of_b), o, wrong, right, plain)
                if found:
                    return found
    return []


def _together(
    search: _Search,
    values: tuple[Value, Value],
    effects: tuple[_Effect, _Effect],
    o: str,
    wrong: set[str],
    right: set[str],
    plain: list[dict[str, Array] | None],
) -> list[Repair]:
    numbers: list[list[Array]] = [[], []]
    plans: list[list[dict[Moment, Array]]] = [[], []]
    for k, p in enumerate(search.batch):
        slopes = [e.slopes[k] for e in effects]
        shares = _shares(search, k, o, slopes, plain[k] or {}) if all(o in s for s in slopes) else None
        if shares is None:
            return []
        for i, value in enumerate(values):
            numbers[i].append(_multiplied(value, k, 1 + shares[:, i], p))
            plans[i].append(value.plan(k, numbers[i][k]))
        now = search.right(k, search.run(k, plans[0][k] | plans[1][k]))
        if o not in now or not right <= now:
            return []
    described = [_described(search, n, v.kind) for n, v in zip(numbers, values, strict=True)]
    before = [_described(search, [a[0].value for a in v.arranged], v.kind)[1] for v in values]
    if any(how > 0 and how >= old for (_, how), old in zip(described, before, strict=True)):
        return []
    return [Repair(v, pl, text, True) for v, pl, (text, _) in zip(values, plans, described, strict=True)]


# ----------------------------------------------------------------------------------------------- words


def _line(search: _Search, repair: Repair) -> WrongLine:
    value = _inside(search, repair.value)
    site = value.site
    return WrongLine(
        function=site.function,
        line=site.line,
        source=site.source,
        name=site.name or site.text,
        found=_found(search, value, repair.expected),
        expected=repair.expected,
    )


def _inside(search: _Search, value: Value) -> Value:
    """If a value is what a function of the file returned: the place in this function where it was computed."""
    for earlier in reversed(search.values[: search.values.index(value)]):
        if earlier.site.function == value.site.function or earlier.site.role == "addend":
            continue
        same = earlier.raw[0].shape == value.raw[0].shape and np.array_equal(earlier.raw[0], value.raw[0])
        if same and f"{earlier.site.function}(" in value.site.text:
            return earlier
    return value


def _found(search: _Search, value: Value, expected: str) -> str:
    """What the value is: a step, a multiple of one, the expected one and something more, or none of these."""
    if value.names:
        return value.names[0]
    text = reduced(value.raw[0], search.steps[0], 100 * search.tolerance)
    if value.kind == "other" or text:
        return text or f"an array of shape {value.raw[0].shape}, which is none of the exact values"
    numbers = [a[0].value for a in value.arranged]
    words, far = _described(search, numbers, value.kind)
    known = [s.of_kind(value.kind).get(expected) for s in search.steps] if value.kind != "number" else [None]
    if far == float("inf") and all(k is not None for k in known):
        rest, more = _described(search, [n - e for n, e in zip(numbers, known, strict=True)], value.kind)
        if more < float("inf"):
            sign = "-" if rest.startswith("-") else "+"
            return f"{expected} {sign} {rest.removeprefix('-')}"
    return words
