"""Which value is the mistake: the first one whose repair makes a wrong output right, and that nothing clears.

A value from which an exact value or a right output follows is cleared, since right code has unusual steps too. If only
the output itself can be repaired, the mistake may be two values together, or an exact step in the wrong place.
"""

import numpy as np

from xhat.lens.checker.expected.exact import arrangements
from xhat.lens.checker.expected.probes import Array
from xhat.lens.checker.lines.experiment import OUTPUTS, Effect, Experiment, Plan
from xhat.lens.checker.lines.repair import (
    Repair,
    candidates,
    described,
    repair,
    scaled,
    shares,
    times,
    wanted,
)
from xhat.lens.checker.lines.values import Value, reduced

__all__ = ["detached", "first_mistakes"]

_PATHS = {"dx̂ r", "2 (x - μ) dσ²/N", "2 (x - μ) dσ²/m", "dμ/N", "dμ/m", "d(x - μ)"}
_GIVEN = {"γ", "β", "dy", "x"}

Suspects = list[tuple[Value, Effect]]


def first_mistakes(e: Experiment) -> list[Repair]:
    """The first mistake, or two that have to be repaired together; empty if there is doubt."""
    weak: Repair | None = None
    suspects: Suspects = []
    outputs = _outputs(e)
    for value in e.values:
        if e.left <= 0:
            break
        output = outputs.get(value)
        step = wanted(value, e.steps[0])
        misnamed = step is not None and step not in value.names
        known = value.names and value.kind != "number" and not misnamed and not output
        if known or not _may_be_wrong(e, value):
            continue
        effect = e.effect(value)
        if not effect.outputs & e.wrong or (effect.cleared and not misnamed and not output):
            continue
        found = repair(e, value, effect, step if misnamed else output)
        if found is None or not found.strong:
            suspects.append((value, effect))
            weak = weak or found
            continue
        term = _term(e, found) if value.site.role == "sum" else None
        if term or not (output or found.expected in ("dx", "y")):
            return _also_misnamed(e, suspects, term or found) or [term or found]
        return [weak] if weak else _behind_the_output(e, suspects, found)
    return [weak] if weak else _reshaped(e, suspects)


def _behind_the_output(e: Experiment, suspects: Suspects, last: Repair) -> list[Repair]:
    """If only the output itself was repaired: what may be the reason, or else this line."""
    return (
        _reshaped(e, suspects)
        or _also_misnamed(e, suspects, last)
        or _misplaced(e, last)
        or _pair(e, suspects)
        or [last]
    )


def _may_be_wrong(e: Experiment, value: Value) -> bool:
    """Not a term of a sum, which is examined with it, nor an array in the making, nor the count itself."""
    role = value.site.role
    if value.kind == "number" or value.constant:
        return not value.constant and not {e.scales.letter, "ε"} & set(value.names) and role != "addend"
    return role not in ("addend", "seen") and (role != "copy" or bool(value.site.name))


def _outputs(e: Experiment) -> dict[Value, str]:
    """The places that give the wrong outputs their final values, and which steps they should be.

    For a variable that is returned, this is the line that set it, unless it is there what its name says.
    """
    found: dict[Value, str] = {}
    for o in sorted(e.wrong):
        equal = [v for v in e.values if v.site.role != "seen" and _is_output(e, v, o)]
        if not equal:
            continue
        last, text = equal[-1], equal[-1].site.text
        origin = next((v for v in reversed(equal[:-1]) if text and v.site.name == text), None)
        rightly_named = origin is not None and wanted(origin, e.steps[0]) in origin.names
        found[last if origin is None or rightly_named else origin] = OUTPUTS[o]
    return found


def _is_output(e: Experiment, value: Value, o: str) -> bool:
    """Whether a value is what the code returns as this output."""
    return value.kind == ("whole" if o in ("y", "dx") else "by channel") and all(
        o in base and base[o].size == n.size and not e.moved(n, base[o].reshape(n.shape))
        for base, n in zip(e.plain, value.numbers, strict=True)
    )


# --------------------------------------------------------------------------- what one value does not show


def _term(e: Experiment, found: Repair) -> Repair | None:
    """If one term of a wrong sum is wrong: the line where this term got its value."""
    place, end = found.value.site, e.values.index(found.value)
    for index in range(end - 1, -1, -1):
        term, site = e.values[index], e.values[index].site
        if site.role != "addend" or site.function != place.function or site.text not in place.text:
            continue
        before = reversed(e.values[:index])
        same = (v for v in before if v.site.name == site.text and v.site.function == site.function)
        origin = next(same, None)
        if set(term.names) & _PATHS or origin is None or wanted(origin, e.steps[0]) in term.names:
            continue
        effect = e.effect(term)
        better = scaled(e, term, effect)
        if better is None and effect.outputs & e.wrong:
            tried = ((name, e.repaired(term, numbers)) for name, numbers in candidates(e, term))
            better = next((Repair(term, plans, name, True) for name, plans in tried if plans), None)
        if better:
            return better._replace(value=origin)
    return None


def _also_misnamed(e: Experiment, suspects: Suspects, found: Repair) -> list[Repair]:
    """An earlier value that is not what its name says, if the repaired one is simpler once this is right."""
    kind = found.value.kind
    if not found.value.is_array:
        return []
    before = described(e, found.value.numbers, kind)[1]
    for value, _ in suspects:
        step = wanted(value, e.steps[0])
        if step is None or not value.is_array:
            continue
        plans = [value.plan(k, s.of_kind(value.kind)[step]) for k, s in enumerate(e.steps)]
        after = [numbers for k, plan in enumerate(plans) for numbers in _value_with(e, k, plan, found.value)]
        if len(after) == len(plans) and described(e, after, kind)[1] < before:
            return [Repair(value, plans, step, True)]
    return []


def _value_with(e: Experiment, k: int, plan: Plan, value: Value) -> list[Array]:
    """What a value is on batch k with this plan, or nothing."""
    e.run(k, plan, recording=True)
    seen, moments = e.watch.seen(), value.moments[k]
    if not all(m in seen for m in moments):
        return []
    raw = np.stack([seen[m] for m in moments]) if len(moments) > 1 else seen[moments[0]]
    return [way.value for way in arrangements(raw, e.batch[k])][:1]


def _misplaced(e: Experiment, last: Repair) -> list[Repair]:
    """A variable whose value is an exact step, but another one than is needed there: a multiple of it."""
    for value in e.values[: e.values.index(last.value)]:
        rightly_named = wanted(value, e.steps[0]) in value.names
        variable = value.site.name and value.site.role not in ("seen", "copy")
        if not value.names or not variable or rightly_named or not value.is_array:
            continue
        effect = e.effect(value)
        if effect.cleared or not effect.outputs & e.wrong:
            continue
        found = scaled(e, value, effect)
        if found and found.strong:
            return [found]
    return []


def _reshaped(e: Experiment, suspects: Suspects) -> list[Repair]:
    """A value whose shape is none of batch norm's, if it is known what it is. It can't be replaced."""
    for value, _ in suspects:
        text = (
            None
            if value.names or value.kind == "by channel"
            else reduced(value.raw[0], e.steps[0], 100 * e.tolerance)
        )
        if text is not None:
            step, mixes, _ = text.partition(" in the shape ")
            better = (
                f"{step} with the channels along an axis of their own" if mixes else "a sum for each channel"
            )
            return [Repair(value, [], better, True)]
    return []


def _pair(e: Experiment, suspects: Suspects) -> list[Repair]:
    """Two values that make an output right together, each as a multiple of itself."""
    usable = [(v, f) for v, f in suspects if v.is_array and len(f.slopes) == len(e.batch)]
    for i, (a, of_a) in enumerate(usable):
        for b, of_b in usable[i + 1 :]:
            for o in sorted(e.wrong & of_a.outputs & of_b.outputs):
                found = _together(e, (a, b), (of_a, of_b), o)
                if found:
                    return found
    return []


def _together(
    e: Experiment, values: tuple[Value, Value], effects: tuple[Effect, Effect], o: str
) -> list[Repair]:
    numbers: list[list[Array]] = [[], []]
    plans: list[list[Plan]] = [[], []]
    for k, p in enumerate(e.batch):
        added = shares(e, k, o, [f.slopes[k] for f in effects])
        if added is None:
            return []
        for i, value in enumerate(values):
            numbers[i].append(times(value, k, 1 + added[:, i], p))
            plans[i].append(value.plan(k, numbers[i][k]))
        now = e.exact_outputs(k, e.run(k, plans[0][k] | plans[1][k]))
        if o not in now or not e.right <= now:
            return []
    words = [described(e, n, v.kind) for n, v in zip(numbers, values, strict=True)]
    before = [described(e, v.numbers, v.kind)[1] for v in values]
    if any(far > 0 and far >= old for (_, far), old in zip(words, before, strict=True)):
        return []
    return [Repair(v, plan, text, True) for v, plan, (text, _) in zip(values, plans, words, strict=True)]


def detached(e: Experiment) -> Value | None:
    """The first exact step without a gradient, if PyTorch differentiates the code and only gradients are wrong."""
    if e.runner.backward is not None or e.runner.spec.kind != "torch" or "y" in e.wrong:
        return None
    steps = [v for v in e.values if v.names and v.is_array and not set(v.names) & _GIVEN]
    steps = [v for v in steps if v.site.role != "addend"]
    stopped = [v for v in steps if v.moments[0][-1].site in e.watch.detached]
    return stopped[0] if 0 < len(stopped) < len(steps) else None
