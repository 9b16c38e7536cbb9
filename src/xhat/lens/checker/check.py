"""`check`: somebody's forward and backward, judged. `check_file` finds them in a file first.

No formula lives here: `judging` judges one way of calling the code, this file chooses it.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xhat.errors import ArgumentError
from xhat.lens.checker.adapter import Adapter, Unjudged
from xhat.lens.checker.arrays import KINDS, kinds_for
from xhat.lens.checker.diagnose import Judgement, judge
from xhat.lens.checker.fit import forward_fits
from xhat.lens.checker.modules import functions_of
from xhat.lens.checker.probes import LAYOUTS, UNIT
from xhat.lens.checker.runner import Plan, Trial, plans
from xhat.lens.checker.statistics import Expected
from xhat.lens.checker.verdict import Verdict

__all__ = ["CONVENTIONS", "check"]

# What the systems mean: correction of the variance, of the running variance, and what momentum weighs.
CONVENTIONS = {
    "torch": Expected(0, 1, "batch"),
    "keras": Expected(0, 0, "running"),
    "flax": Expected(0, 0, "running"),
    "onnx": Expected(0, 0, "running"),
}

_TRIED = ("NC", "NCHW", "NHWC", "NCL", "NLC", "NC, square")
_ALSO = ("NCHW", "NHWC")


def check(
    forward: Callable[..., Any] | None = None,
    backward: Callable[..., Any] | None = None,
    *,
    adapter: Adapter | None = None,
    like: str | None = None,
    correction: int | None = None,
    layout: str | None = None,
    dtype: str | None = None,
    eps: float | None = None,
) -> Verdict:
    """Judge somebody's batch normalization, and say which mistake explains what is wrong.

    forward(x, gamma, beta, ...) returns y, (y, cache), (y, mean, var), or a dict; backward(dy, cache) or
    backward(dy, x, gamma, ...) returns dx, dgamma and dbeta as a tuple or a dict. Arrays are NumPy's, PyTorch's or
    JAX's; arguments are known by their usual names, `adapter` tells the others. A forward alone in PyTorch or JAX
    is differentiated too. A class with a forward (and a backward) is checked as a layer.

    ``like`` ("torch", "keras", "flax", "onnx") and ``correction`` ask for a convention; without them the code's own
    is found and accepted. ``layout`` ("NC", "NCHW", "NHWC", "NCL", "NLC", "CN"), ``dtype`` ("float64", "float32",
    "bfloat16", "float16") and ``eps`` (for code with its own) are found too, unless given.

    The verdict is true when the code is right. Code that fails to run makes no exception but a verdict of status 2.
    Raises ArgumentError for a convention, layout or dtype that does not exist, or when there is nothing to check.
    """
    adapter = adapter or Adapter()
    _accept(forward, backward, adapter, like, correction, layout, dtype, eps)
    expected = replace(CONVENTIONS[like]) if like else Expected()
    expected = replace(expected, correction=correction) if correction is not None else expected
    if inspect.isclass(forward):
        try:
            forward, own_backward, kind = functions_of(forward)
        except Unjudged as problem:
            return Verdict(None, forward.__name__, problem=str(problem))
        backward = backward or own_backward
        adapter = replace(adapter, arrays=adapter.arrays or kind)
    functions = [f for f in (forward, backward) if f is not None]
    roles = (("forward", forward), ("backward", backward))
    subject = " and ".join(_name(function, role) for role, function in roles if function is not None)
    ways = plans(
        kinds_for(functions, adapter.arrays),
        (dtype,) if dtype else ("float64", "float32"),
        (layout,) if layout else _TRIED,
    )
    with np.errstate(all="ignore"):  # what a mistake makes of the numbers may well be undefined
        try:
            first = _first(ways, forward, backward, adapter, expected, eps)
        except Unjudged as problem:
            return Verdict(None, subject, problem=str(problem))
        results = [first]
        if layout is None and first.trial.plan.layout == "NC" and forward is not None and first.forward_right:
            results += _elsewhere(first, expected)
    return _verdict(subject, results)


def _name(function: Any, role: str) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return role if name == "<lambda>" else name


def _accept(
    forward: Any,
    backward: Any,
    adapter: Adapter,
    like: Any,
    correction: Any,
    layout: Any,
    dtype: Any,
    eps: Any,
) -> None:
    if forward is None and backward is None:
        raise ArgumentError("check: got neither forward nor backward, expected at least one function.")
    for name, function in (("forward", forward), ("backward", backward)):
        if function is not None and not callable(function):
            raise ArgumentError(f"check: {name} is {function!r}, expected a function.")
    for name, value, known in (
        ("like", like, CONVENTIONS),
        ("correction", correction, (0, 1)),
        ("layout", layout, LAYOUTS),
        ("dtype", dtype, UNIT),
        ("adapter.arrays", adapter.arrays, KINDS),
    ):
        if value is not None and value not in known:
            raise ArgumentError(f"check: {name} is {value!r}, expected {' or '.join(map(repr, known))}.")
    if eps is not None and not 0 <= eps < math.inf:
        raise ArgumentError(f"check: eps is {eps!r}, expected a finite number of at least 0.")


def _first(
    ways: Any, forward: Any, backward: Any, adapter: Adapter, expected: Expected, eps: float | None
) -> Judgement:
    """The judgement of the first plan that runs; if none does, the reason of the first."""
    reason: Unjudged | None = None
    for plan in ways:
        try:
            return judge(Trial(forward, backward, adapter, plan), expected, eps)
        except Unjudged as problem:
            reason = reason or problem
        except ModuleNotFoundError as missing:
            reason = reason or Unjudged(
                f"{plan.dtype} arrays of {plan.kind} need the package {missing.name}."
            )
    assert reason is not None
    raise reason


def _elsewhere(first: Judgement, expected: Expected) -> list[Judgement]:
    """Code that is right on (N, C) is tried with positions too; there it counts where its forward is right."""
    found = []
    for layout in _ALSO:
        plan: Plan = replace(first.trial.plan, layout=layout)
        for style in (plan, replace(plan, parameters="wide", statistics="wide")):
            trial = replace(first.trial, plan=style)
            try:
                if forward_fits(trial, first.eps):
                    found.append(judge(trial, expected, first.eps))
                    break
            except Unjudged:
                continue
    return found


def _verdict(subject: str, results: list[Judgement]) -> Verdict:
    """The first layout in full, and of the others what it does not show."""
    first = results[0]
    notes, mistakes, unnamed, rows = (
        list(first.notes),
        list(first.findings),
        list(first.unnamed),
        list(first.rows),
    )
    for other in results[1:]:
        name = other.trial.plan.layout
        if other.right:
            notes.append(f"Right with positions too, as {name}.")
            continue
        mistakes += [f for f in other.findings if f.names not in {m.names for m in mistakes}]
        unnamed += [f"{name}: {text}" for text in other.unnamed if text not in unnamed]
        rows += [replace(row, output=f"{row.output} ({name})") for row in other.rows if not row.right]
    return Verdict(
        right=all(result.right for result in results),
        subject=subject,
        rows=tuple(rows),
        mistakes=tuple(mistakes),
        unnamed=tuple(unnamed),
        conventions=first.conventions,
        notes=tuple(notes),
        tolerance=first.tolerance,
    )
