"""`check_data`: judges what a kernel gave, from arrays alone, against the exact results of the same inputs.

No formula lives here: `reference` computes, `bounds` says how far a careful kernel may be off, and `naming` names
the mistakes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from xhat.errors import ArgumentError
from xhat.lens.checker.calling.runs import RunResult
from xhat.lens.checker.diagnosis.comparison import Comparison
from xhat.lens.checker.diagnosis.statistics import Expected, check_running
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.bounds import bounds
from xhat.lens.checker.expected.probes import UNIT, Array, Layout, Probe
from xhat.lens.checker.expected.steps import DERIVATIVE, EXACT, Faults
from xhat.lens.checker.faults import TITLES
from xhat.lens.checker.kernels.cases import Case, layouts_of, read_cases
from xhat.lens.checker.kernels.dumps import read_dumps
from xhat.lens.checker.kernels.joining import joined
from xhat.lens.checker.kernels.naming import explain
from xhat.lens.checker.page.views import pictured
from xhat.lens.checker.verdict import FoundMistake, Row, Verdict

__all__ = ["check_data"]

_USUAL_EPS = (1e-5, 1e-3, 1e-6, 1e-8, 1e-12)  # tried in this order if the dump has none
_GRADIENTS = ("dx", "dgamma", "dbeta")
_GIVEN = Faults(mean_from="run", variance_from="run")  # evaluation: the running statistics


@dataclass
class Judged:
    """One case under one reading: its layout, eps and correction."""

    case: Case
    comparison: Comparison
    layout: Layout
    eps: float
    correction: int
    evaluation: bool

    @property
    def wrong(self) -> list[str]:
        return [name for name in self.comparison.yours if self.comparison.ratio(name) > 1]


def check_data(
    data: Mapping[str, Any] | str | Path,
    *,
    layout: str | None = None,
    axis: int | None = None,
    eps: float | None = None,
    correction: int | None = None,
    dtype: str | None = None,
) -> Verdict:
    """Check the results of a kernel, from arrays; no code is run.

    Parameters
    ----------
    data : mapping, str or Path
        A mapping of names to arrays, or the path of a ``.npz`` or ``.safetensors`` file or of a folder of ``.npy``
        files. It has x, and what the kernel gave: y; dx, dgamma and dbeta, for which dy is needed; mean, var or rstd;
        the running statistics before and after (running_mean, running_mean_after, ...). gamma is 1 and beta 0 if they
        are missing. Usual names are recognized (weight, scale, dout, grad_input, ...). eps, momentum, correction, axis
        or layout, and training (0: evaluation) may be in it as single values. Several cases have names before a slash:
        "case0/x".
    layout : {"NC", "NCHW", "NHWC", "NCL", "NLC", "NCDHW", "NDHWC", "CN"}, optional
        The layout of x, if the data do not have it.
    axis : int, optional
        The channel axis of x, in place of a layout.
    eps : float, optional
        The eps, if the data do not have it. By default the usual ones are tried.
    correction : {0, 1}, optional
        The correction, if the data do not have it. By default both are tried.
    dtype : {"float64", "float32", "bfloat16", "float16"}, optional
        The dtype in which the kernel computed. By default it is that of x.

    Returns
    -------
    Verdict
        It is true if every result is right; print it. What is missing is not judged.

    Raises
    ------
    ArgumentError, ShapeError, DtypeError
        For data that can't be judged.

    See Also
    --------
    probes : Inputs that find the mistakes of kernels.

    Notes
    -----
    Every output is compared with the exact one. Its error may be as large as the rounding of a careful kernel, for the
    dtype, the number of values a channel and ``|mu| / sigma``.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat.lens
    >>> x = np.array([[1.0], [2.0], [4.0], [5.0]])
    >>> y = (x - 3) / np.sqrt(2.5 + 1e-5)  # what the kernel gave
    >>> xhat.lens.check_data({"x": x, "y": y, "eps": 1e-5}).right
    True
    """
    if dtype is not None and dtype not in UNIT:
        raise ArgumentError(f"check: dtype is {dtype!r}, expected {' or '.join(map(repr, UNIT))}.")
    dump = read_dumps([data]) if isinstance(data, str | Path) else data
    found = []
    with np.errstate(all="ignore"):
        for case in read_cases(dump):
            if dtype is not None:
                case.dtypes["x"] = dtype
            if case.has_results:
                found.append(_verdict(_best(case, layout, axis, eps, correction)))
            else:
                row = Row("all", None, None, "the dump has no result of the kernel")
                found.append(Verdict(case.name, rows=(row,)))
    return found[0] if len(found) == 1 else joined(found)


def _best(
    case: Case, layout: str | None, axis: int | None, eps: float | None, correction: int | None
) -> Judged:
    """The reading under which most outputs are right: the first one if there are several."""
    eps = case.settings.get("eps") if eps is None else eps
    correction = case.settings.get("correction") if correction is None else correction
    best: Judged | None = None
    for where, c, e in product(
        layouts_of(case, layout, axis),
        (0, 1) if correction is None else (int(correction),),
        _USUAL_EPS if eps is None else (float(eps),),
    ):
        if best is not None and probe_of(case, where, e).count() <= c:
            continue
        judged = _judge(case, where, e, c)
        if best is None or len(judged.wrong) < len(best.wrong):
            best = judged
        if not judged.wrong:
            break
    assert best is not None
    return best


def probe_of(case: Case, layout: Layout, eps: float) -> Probe:
    """The inputs of a case. Missing ones have their defaults: gamma 1, beta 0, dy 0."""
    x = case.arrays["x"]
    wide = [1] * x.ndim
    wide[layout.axis] = x.shape[layout.axis]

    def parameter(name: str, default: float) -> Array:
        return case.by_channel(name, layout) if name in case.arrays else np.full(wide, default)

    return Probe(
        layout=layout,
        x=x,
        dy=case.arrays.get("dy", np.zeros_like(x)),
        gamma=parameter("gamma", 1.0),
        beta=parameter("beta", 0.0),
        running_mean=parameter("running_mean", 0.0),
        running_var=parameter("running_var", 1.0),
        eps=eps,
        momentum=float(case.settings.get("momentum", 0.3)),
    )


def _judge(case: Case, layout: Layout, eps: float, correction: int) -> Judged:
    p = probe_of(case, layout, eps)
    evaluation = _evaluates(case)
    f = reference.forward(p, correction, _GIVEN if evaluation else EXACT)
    if evaluation:
        b = reference.backward(p, f, correction, EXACT, DERIVATIVE, _GIVEN)
    else:
        b = reference.backward(p, f, correction, EXACT)
    exact = {
        "y": f.y,
        "dx": b.dx,
        "dgamma": b.dgamma,
        "dbeta": b.dbeta,
        "mean": f.mu,
        "var": f.var,
        "rstd": f.rstd,
    }
    arithmetic = UNIT["float64" if case.dtypes["x"] == "float64" else "float32"]
    units = {name: case.unit(name) for name in case.results}
    allowed = bounds(p, f, b, correction, arithmetic=arithmetic, results=units)
    if "std" in case.arrays:
        exact["std"], allowed["std"] = 1 / f.rstd, allowed["rstd"] / f.rstd**2 + 4 * units["std"] / f.rstd
    if "var" in case.arrays:  # either divisor is a variance
        exact["var"] = _nearer(case.arrays["var"], exact["var"], correction, p.count())
    judged = [name for name in case.results if name not in _GRADIENTS or "dy" in case.arrays]
    yours = {name: case.arrays[name].reshape(exact[name].shape) for name in judged}
    return Judged(
        case, Comparison(case.name, p, yours, exact, allowed, b), layout, eps, correction, evaluation
    )


def _evaluates(case: Case) -> bool:
    mode = str(case.settings.get("mode", "train")).lower()
    given = not case.settings.get("training", True) or mode not in ("train", "training")
    missing = [name for name in ("running_mean", "running_var") if name not in case.arrays]
    if given and missing:
        raise ArgumentError(
            f"check: {case.title}the dump is of evaluation and has no {missing[0]}, expected both running statistics."
        )
    return given


def _nearer(found: Array, var: Array, correction: int, m: int) -> Array:
    if m < 2:
        return var
    other = var * (m - correction) / (m - (1 - correction))
    return min((var, other), key=lambda v: float(np.nanmax(np.abs(v.ravel() - found.ravel()))))


def _verdict(judged: Judged) -> Verdict:
    case, c = judged.case, judged.comparison
    wrong = judged.wrong
    mistakes, unnamed = explain(c, wrong, judged.correction, judged.evaluation) if wrong else ([], [])
    rows = []
    for name in c.yours:
        why = " and ".join(" or ".join(m.names) for m in mistakes if name in m.outputs)
        ratio = c.ratio(name)
        if ratio <= 1:
            why = f"{ratio:.2g} of the rounding that is allowed"
        elif not why:
            why = f"{ratio:.3g} times the rounding that is allowed" if np.isfinite(ratio) else "not finite"
        rows.append(Row(name, ratio <= 1, c.error(name), why))
    rows += [Row(name, None, None, "dy is not in the dump") for name in case.results if name not in c.yours]
    running, more, texts, conventions = _running(judged)
    missing = [n for n in ("y", *_GRADIENTS) if n not in case.results]
    return Verdict(
        case.name or "the dump",
        rows=(*rows, *running),
        mistakes=(*mistakes, *more),
        unnamed=(*unnamed, *texts),
        conventions=_conventions(judged) | conventions,
        notes=_notes(judged),
        not_judged=(f"{', '.join(missing)}: not in the dump.",) if missing else (),
        comparisons=(pictured(c),),
    )


def _conventions(judged: Judged) -> dict[str, str]:
    case, p = judged.case, judged.comparison.probe
    exact = judged.comparison.exact
    far = float(np.abs(exact["mean"] * exact["rstd"]).max())
    found = {
        "x": f"{' x '.join(map(str, p.x.shape))}, {case.dtypes['x']}, m = {p.count():,}, |mu| rstd up to {far:.2g}",
        "channel axis": f"{judged.layout.axis} ({judged.layout.name})",
        "eps": f"{judged.eps:g}" + ("" if "eps" in case.settings else " (not in the dump)"),
    }
    if judged.evaluation:
        return found | {"mode": "evaluation"}
    return found | {"variance": "N - 1" if judged.correction else "N"}


def _notes(judged: Judged) -> tuple[str, ...]:
    case, arithmetic = judged.case, "float64" if judged.case.dtypes["x"] == "float64" else "float32"
    notes = [
        f"Allowed: what a careful kernel is off by that computes in {arithmetic} and rounds to the dtype saved."
    ]
    if case.unused:
        notes.append(f"Not used, since no quantity has this name: {', '.join(case.unused)}.")
    return tuple(notes)


def _running(judged: Judged) -> tuple[list[Row], list[FoundMistake], list[str], dict[str, str]]:
    """The running statistics after the update, where those before it are in the dump."""
    case, c = judged.case, judged.comparison
    after = {
        n: case.arrays[f"{n} after"] for n in ("running_mean", "running_var") if f"{n} after" in case.arrays
    }
    if not after:
        return [], [], [], {}
    missing = [name for name in after if name not in case.arrays]
    if missing or judged.evaluation:
        why = (
            f"{missing[0]} before the update is not in the dump" if missing else "evaluation updates nothing"
        )
        return [Row(name, None, None, why) for name in after], [], [], {}
    sizes = {"running_mean": c.exact["mean"], "running_var": c.exact["var"]}
    tolerance = max(
        float((c.allowed[n.removeprefix("running_")] / np.abs(sizes[n]).max()).max())
        + 8 * max(case.unit(f"{n} after"), UNIT["float32"] if case.dtypes["x"] != "float64" else 0)
        for n in after
    )
    found = check_running(
        (c.probe,), [RunResult(running=after)], None, judged.correction, EXACT, Expected(), tolerance
    )
    if "momentum" not in case.settings:
        found.mistakes = [one for one in found.mistakes if one[0] != "momentum reversed"]
    mistakes = [FoundMistake((name,), (output,), *TITLES[name]) for name, output in found.mistakes]
    rows = [
        Row(
            name,
            not any(name in m.outputs for m in mistakes)
            and not any(t.startswith(name) for t in found.unnamed),
            None,
            ", ".join(m.names[0] for m in mistakes if name in m.outputs),
        )
        for name in after
    ]
    return rows, mistakes, found.unnamed, found.conventions
