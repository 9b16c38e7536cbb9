"""`check`: chooses how to call the code under test, and combines the diagnoses of several layouts into a verdict.

No formula lives here; `diagnose` judges one layout.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from xhat.errors import ArgumentError
from xhat.lens.checker.calling.adapter import Adapter, Unjudged
from xhat.lens.checker.calling.arrays import KINDS, kinds_for
from xhat.lens.checker.calling.modules import functions_of
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.calling.runs import ArraySpec, array_specs
from xhat.lens.checker.diagnosis.comparison import compared
from xhat.lens.checker.diagnosis.diagnose import diagnose
from xhat.lens.checker.diagnosis.fit import forward_fits
from xhat.lens.checker.diagnosis.plans import choose
from xhat.lens.checker.diagnosis.record import Diagnosis
from xhat.lens.checker.diagnosis.statistics import Expected
from xhat.lens.checker.expected.probes import LAYOUTS, UNIT
from xhat.lens.checker.lines.locate import located
from xhat.lens.checker.page.views import pictured
from xhat.lens.checker.verdict import Verdict

__all__ = ["CONVENTIONS", "check", "check_arguments"]

# The conventions of each framework: correction of the variance, of the running variance, and sense of momentum.
CONVENTIONS = {
    "torch": Expected(0, 1, "batch"),
    "keras": Expected(0, 0, "running"),
    "flax": Expected(0, 0, "running"),
    "onnx": Expected(0, 0, "running"),
}

_TRIED = ("NC", "NCHW", "NHWC", "NCL", "NLC", "NCDHW", "NDHWC", "CN", "NC, square")
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
    thorough: bool = False,
) -> Verdict:
    """Check a batch-norm implementation, and name the mistakes that explain wrong outputs.

    Parameters
    ----------
    forward : callable or class, optional
        ``forward(x, gamma, beta, ...)`` returns y, (y, cache), (y, mean, var), or a dict. A class with a forward (and a
        backward) is checked as a layer. Arrays are NumPy, PyTorch or JAX arrays.
    backward : callable, optional
        ``backward(dy, cache)`` or ``backward(dy, x, gamma, ...)`` returns dx, dgamma and dbeta as a tuple or a dict.
        Without it, a forward in PyTorch or JAX is differentiated.
    adapter : Adapter, optional
        Parameters and results that do not have their usual names.
    like : {"torch", "keras", "flax", "onnx"}, optional
        The convention that is required. By default any consistent convention is detected and accepted.
    correction : {0, 1}, optional
        The correction that is required. By default it is detected.
    layout : {"NC", "NCHW", "NHWC", "NCL", "NLC", "NCDHW", "NDHWC", "CN"}, optional
        The layout of x. By default it is detected.
    dtype : {"float64", "float32", "bfloat16", "float16"}, optional
        The dtype of the arrays. By default it is detected.
    eps : float, optional
        The eps of code without this parameter. By default it is detected.
    thorough : bool, default False
        Whether to run more sizes, float32 and 16 bits, whose sums belong in float32.

    Returns
    -------
    Verdict
        It is true if the code is right; print it. If the code fails to run, its status is 2, and no exception is
        raised.

    Raises
    ------
    ArgumentError
        For an unknown convention, layout or dtype, and if there is nothing to check.

    See Also
    --------
    check_file : All batch norms in a file.
    check_data : Results of a kernel, as arrays.

    Notes
    -----
    Parameters are recognized by their usual names; an `Adapter` describes others.

    Code that is right on small batches is run on longer channels, on memory with strides, and on equal inputs again, as
    kernels fail there.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat.lens
    >>> def forward(x, gamma, beta, eps=1e-5):
    ...     return gamma * (x - x.mean(0)) / np.sqrt(x.var(0)) + beta
    >>> verdict = xhat.lens.check(forward)
    >>> verdict
    <forward: wrong: eps missing in the forward [y].>
    >>> verdict.right, verdict.names
    (False, frozenset({'eps missing in the forward'}))
    """
    adapter = adapter or Adapter()
    check_arguments(forward, backward, adapter, like, correction, layout, dtype, eps)
    expected = _expected(like, correction)
    if inspect.isclass(forward):
        try:
            layer = functions_of(forward, adapter)
        except Unjudged as problem:
            return Verdict(forward.__name__, problem=str(problem))
        forward, backward = layer.forward, backward or layer.backward
        adapter = Adapter(arrays=adapter.arrays or layer.kind)
    if backward is not None and getattr(forward, "bwd", None) is backward:
        backward = None  # the backward of a custom_vjp runs where its forward is differentiated
    subject = _subject(forward, backward)
    specs = array_specs(
        kinds_for([f for f in (forward, backward) if f is not None], adapter.arrays),
        (dtype,) if dtype else ("float64", "float32"),
        (layout,) if layout else _TRIED,
    )
    with np.errstate(all="ignore"):  # a mistake may make the numbers undefined
        try:
            unplanned = Runner(forward, backward, adapter, ArraySpec("", "", ""))
            first = diagnose(choose(specs, unplanned, eps), expected, eps, thorough)
        except Unjudged as problem:
            return Verdict(subject, problem=str(problem))
        others = _on_images(first, expected, thorough) if layout is None else []
    if layout is None and first.runner.spec.layout == "CN":
        subject += ", with features in rows, (C, N)"
    return _verdict(subject, [first, *others])


def _expected(like: str | None, correction: int | None) -> Expected:
    expected = CONVENTIONS[like] if like else Expected()
    return expected if correction is None else replace(expected, correction=correction)


def _subject(forward: Any, backward: Any) -> str:
    roles = (("forward", forward), ("backward", backward))
    return " and ".join(_name_of(function, role) for role, function in roles if function is not None)


def _name_of(function: Any, role: str) -> str:
    name = str(getattr(function, "__name__", type(function).__name__))
    return role if name == "<lambda>" else name


def check_arguments(
    forward: Any,
    backward: Any,
    adapter: Adapter,
    like: Any,
    correction: Any,
    layout: Any,
    dtype: Any,
    eps: Any,
) -> None:
    """Raises ArgumentError for arguments that `check` does not take."""
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


def _on_images(first: Diagnosis, expected: Expected, thorough: bool) -> list[Diagnosis]:
    """Diagnoses on image layouts of a forward that is right on (N, C), where it is right there too."""
    if first.runner.forward is None or first.runner.spec.layout != "NC" or not first.forward_right:
        return []
    found = []
    for layout in _ALSO:
        spec: ArraySpec = replace(first.runner.spec, layout=layout)
        for wide_or_flat in (spec, replace(spec, parameters="wide", statistics="wide", running="wide")):
            runner = replace(first.runner, spec=wide_or_flat)
            try:
                if forward_fits(runner, first.fit):
                    found.append(diagnose(runner, expected, first.fit.eps, thorough))
                    break
            except Unjudged:
                continue
    return found


def _verdict(subject: str, results: list[Diagnosis]) -> Verdict:
    """The first layout in full; from the others, only what the first does not show."""
    first = results[0]
    notes, mistakes, unnamed, rows = (
        list(first.notes),
        list(first.mistakes),
        list(first.unnamed),
        list(first.rows),
    )
    for other in results[1:]:
        name = other.runner.spec.layout
        if other.right:
            notes.append(f"Right with positions too, as {name}.")
            continue
        mistakes += [f for f in other.mistakes if f.names not in {m.names for m in mistakes}]
        unnamed += [f"{name}: {text}" for text in other.unnamed if text not in unnamed]
        rows += [replace(row, output=f"{row.output} ({name})") for row in other.rows if not row.right]
    lines, formulas, hints = located(results)
    return Verdict(
        subject=subject,
        rows=tuple(rows),
        mistakes=tuple(mistakes),
        unnamed=tuple(unnamed),
        conventions=first.conventions,
        wrong_lines=lines,
        formulas=formulas,
        notes=(*notes, *hints),
        not_judged=tuple(first.not_judged),
        tolerance=first.tolerance,
        comparisons=tuple(pictured(c) for r in results for c in (compared(r.fit), *r.comparisons)),
    )
