"""The first wrong line: the first place whose value is no exact step, and whose repair makes a wrong output right.

Every value that the code computes is recognized by its numbers (`values`). A value that is not recognized is no
mistake by itself: it is one only if a wrong output follows from it (`blame`), and the output is right once the value
is replaced (`repair`). The replacements are run (`experiment`), on several batches.
"""

import numpy as np

from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.expected.probes import Probe
from xhat.lens.checker.lines.blame import detached, first_mistakes
from xhat.lens.checker.lines.experiment import Experiment
from xhat.lens.checker.lines.repair import described
from xhat.lens.checker.lines.values import Value, reduced
from xhat.lens.checker.lines.watch import files_of, watching
from xhat.lens.checker.verdict import WrongLine

__all__ = ["wrong_lines"]

_LINES = 3  # shown, at most


def wrong_lines(
    runner: Runner, batch: tuple[Probe, ...], correction: int, wrong: set[str], tolerance: float
) -> tuple[tuple[WrongLine, ...], list[str]]:
    """The lines from which the wrong outputs follow, and sentences about what could not be examined.

    With several mistakes each is repaired before the next one is searched for. No line is claimed in doubt.
    """
    files = files_of(runner.forward, runner.backward)
    if not files:
        return (), ["The source of the code is not available, so no line of it was examined."]
    with watching(runner, files) as (watched, watch):
        e = Experiment(watched, watch, batch, correction, tolerance, wrong)
        problem = e.observe()
        if problem is not None:
            return (), [problem]
        found: dict[WrongLine, None] = {}
        while e.wrong and len(found) < _LINES:
            mistakes = first_mistakes(e)
            found |= {_line(e, one.value, one.expected): None for one in mistakes}
            if not mistakes or not all(one.plans for one in mistakes):
                break
            for one in mistakes:
                e.repairs = [a | b for a, b in zip(e.repairs, one.plans, strict=True)]
            if e.observe() is not None:
                break
        stopped = None if found else detached(e)
        if stopped is not None:
            found[_stopped(stopped)] = None
        return tuple(found), []


def _line(e: Experiment, value: Value, expected: str) -> WrongLine:
    value = _inside(e, value)
    site = value.site
    name = site.name or site.text
    return WrongLine(site.function, site.line, site.source, name, _found(e, value, expected), expected)


def _stopped(value: Value) -> WrongLine:
    site, name = value.site, value.names[0]
    found, expected = f"{name}, but no gradient flows through it", f"{name} as a part of the graph"
    return WrongLine(site.function, site.line, site.source, site.name or site.text, found, expected)


def _inside(e: Experiment, value: Value) -> Value:
    """If a value is what a function of the file returned: the place in this function where it was computed."""
    for earlier in reversed(e.values[: e.values.index(value)]):
        if earlier.site.function == value.site.function or earlier.site.role == "addend":
            continue
        same = earlier.raw[0].shape == value.raw[0].shape and np.array_equal(earlier.raw[0], value.raw[0])
        if same and f"{earlier.site.function}(" in value.site.text:
            return earlier
    return value


def _found(e: Experiment, value: Value, expected: str) -> str:
    """What the value is: a step, a multiple of one, the expected one and something more, or none of these."""
    if value.names:
        return value.names[0]
    text = reduced(value.raw[0], e.steps[0], 100 * e.tolerance)
    if value.kind == "other" or text:
        return text or f"an array of shape {value.raw[0].shape}, which is none of the exact values"
    words, far = described(e, value.numbers, value.kind)
    known = [s.of_kind(value.kind)[expected] for s in e.steps if expected in s.of_kind(value.kind)]
    if value.is_array and far == float("inf") and len(known) == len(e.steps):
        rest = [n - exact for n, exact in zip(value.numbers, known, strict=True)]
        more, how = described(e, rest, value.kind)
        if how < float("inf"):
            return f"{expected} {'-' if more.startswith('-') else '+'} {more.removeprefix('-')}"
    return words
