"""The eps of the code under test: passed to it, or read from how its outputs shrink where the variance is small.

Where eps is in the code, everything else is judged first on batches beside whose variance no eps is visible, so that
mistakes of eps and other mistakes are not searched for together.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np

from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.diagnosis.fit import Fit, fit_at
from xhat.lens.checker.diagnosis.search import BACKWARD, LIMIT
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.probes import LARGE, Array, Probe, probes
from xhat.lens.checker.expected.steps import CLOSED, FORMULATIONS, Faults, Formulation
from xhat.lens.checker.faults import TITLES, Mistake, compatible, sets_of, with_faults

__all__ = ["IGNORED", "OTHER", "PROBE_EPS", "fit_with_eps"]

# The eps that is passed to the code, as large as the variance; a customary one; and all customary ones.
PROBE_EPS, CUSTOMARY = 0.4, 1e-5
_USUAL_EPS = (1e-5, 1e-8, 1e-3, 1e-6, 1e-7, 1e-4, 1e-10, 1e-12, 1e-2, 2e-5, 1e-9, 1e-15)
IGNORED, OTHER = "the eps given is ignored", "another eps in the backward"
_WHERE = ("everywhere", "scale", "dvar", "dvar step")


def takes_eps(runner: Runner, p: Probe) -> bool:
    """Whether eps is a parameter of the code, or one of the options that it reads."""
    return runner.takes("eps") or (runner.takes("options") and "eps" in runner.run(p).read)


def fit_with_eps(runner: Runner, eps: float | None, correction: int | None) -> Fit:
    """The fit at the given eps; at PROBE_EPS if eps is a parameter of the code; else at the eps in the code."""
    if eps is not None:
        return fit_at(runner, eps, correction)
    batch = probes(runner.spec.layout, runner.spec.dtype, CUSTOMARY, True)
    if takes_eps(runner, batch[0]):
        fit = fit_at(runner, PROBE_EPS, correction)
        return fit if fit.cost[0] == 0 else _without_eps(fit, correction, PROBE_EPS)
    return _without_eps(None, correction, None, runner)


def _without_eps(
    fit: Fit | None, correction: int | None, given: float | None, runner: Runner | None = None
) -> Fit:
    """The fit of code whose eps, or that of one pass, is not the one it is given."""
    runner = fit.runner if fit is not None else runner
    assert runner is not None
    # With the eps that is given, only mistakes beside that of eps are searched for: one in each output.
    most = LIMIT if fit is None else 1
    large = fit_at(runner, CUSTOMARY, correction, LARGE[runner.spec.dtype], most)
    found: list[Fit] = [fit] if fit is not None else []
    if fit is None or "y" in _unexplained(fit):
        for value in _candidates(large, given):
            tried = fit_at(runner, value, correction)
            if fit is not None and "y" in tried.outputs():
                tried = replace(tried, own_eps={"y": value})
            found.append(tried)
            if tried.cost[0] == 0:
                return tried
    best = min(found, key=lambda f: f.cost)
    if large.cost[0] < best.cost[0]:
        best = _with_another_eps(best, large)
    return best


def _unexplained(fit: Fit) -> list[str]:
    return [output for output, sets in fit.best[0].outputs.items() if not sets]


def _candidates(large: Fit, given: float | None) -> list[float]:
    """Values of the eps in the code: as y shows it, or the customary ones with which the explanation still holds."""
    if "y" in large.outputs():
        if "y" in _unexplained(large):
            return [] if given is not None else [CUSTOMARY]
        value = _read(large)
        if value is not None and (given is None or value != given):
            return [value or CUSTOMARY]
        if given is not None:
            return []
    fitting = [value for value in _USUAL_EPS if _holds(large, value)]
    return fitting[:1] or [CUSTOMARY]


def _holds(large: Fit, eps: float) -> bool:
    """Whether the first output is still explained where an eps of this value is visible."""
    runner, output = large.runner, large.outputs()[0]
    batch = probes(runner.spec.layout, runner.spec.dtype, eps, large.affine)
    runs = [runner.run(p, large.best[0].correction) for p in batch]
    fit = replace(large, batch=batch, runs={0: runs, 1: runs}, eps=eps, unit=None)
    predictor = fit.predictor(large.best[0].correction)
    observed = fit.flat(0, output)
    return bool(predictor.explain(output, observed, max(large.tolerance, 1e-7), 0)) or any(
        _same(predictor.predict(output, (), CLOSED, chosen), observed, max(large.tolerance, 1e-7))
        for chosen in _sets(large, output)
    )


def _sets(fit: Fit, output: str) -> list[tuple[Mistake, ...]]:
    """The sets of mistakes with which the best explanation explains an output."""
    e = fit.best[0]
    inherited = e.forward if fit.runner.uses_cache and output != "y" else ()
    size = min((len(names) for names in e.outputs.get(output, ())), default=0)
    if output == "y":
        return [e.forward]
    return fit.predictor(e.correction).explain(
        output, fit.flat(e.correction, output), fit.tolerance, size, inherited, e.formulation
    )


def _same(predicted: Array, observed: Array, tolerance: float) -> bool:
    if predicted.size != observed.size:
        return False
    return bool(np.abs(predicted - observed).max() <= tolerance * max(float(np.abs(predicted).max()), 1e-300))


# ----------------------------------------------------------------------------- the eps that y shows


def _read(large: Fit) -> float | None:
    """The eps in the code, to three digits if these suffice; 0 if there is none; None if y shows no eps."""
    e, digits = large.best[0], 1e-7 if large.dtype == "float64" else 1e-3
    faults = replace(with_faults(e.forward), eps="inside")
    guess, value = CUSTOMARY, None
    for _ in range(4):
        value = _eps_at(large, guess, faults, digits)
        if value is None:
            return None
        if value == 0 and guess > 1e-12:
            guess *= 1e-4
            continue
        if abs(value - guess) <= digits * guess:
            break
        guess = value or guess
    assert value is not None
    rounded = float(f"{value:.3g}")
    return rounded if abs(rounded - value) <= 10 * digits * value else value


def _eps_at(large: Fit, guess: float, faults: Faults, digits: float) -> float | None:
    """The eps for which y shrinks as it does on batches whose variance is about `guess`."""
    runner, correction = large.runner, large.best[0].correction
    inside: list[float] = []
    outside: list[float] = []
    variances: list[float] = []
    for p in probes(runner.spec.layout, runner.spec.dtype, guess, large.affine):
        scaled = large.convention.scaled(p)
        exact = reference.forward(replace(scaled, eps=0.0), correction, faults)
        if exact.var.size not in (1, p.channels):  # wrong axes: y has no slope by channel
            return None
        y = runner.run(p, correction).outputs["y"]
        kept: Array = np.asarray(y > 0 if large.convention.activation else np.ones_like(y), dtype=np.float64)
        with np.errstate(all="ignore"):
            shrunk = _slopes(p, y, kept) / _slopes(p, exact.y, kept)
            var = np.broadcast_to(exact.var, p.gamma.shape).ravel()
            inside += list(var * (np.abs(shrunk) ** (-1 / faults.root) - 1))
            outside += list(np.sqrt(var) * (1 / np.abs(shrunk) - 1))
            variances += list(var)
    if not np.isfinite([*inside, *outside]).all():
        return None
    if max(np.abs(inside)) <= digits * 1e-2 * max(variances):
        return 0.0
    middle, spread = min(
        ((float(np.median(v)), float(np.ptp(v))) for v in (inside, outside)),
        key=lambda found: found[1] / abs(found[0]),
    )
    return middle if middle > 0 and spread <= 0.05 * middle else None


def _slopes(p: Probe, y: Array, kept: Array) -> Array:
    """dy / dx in every channel, over the kept elements."""
    rows = [np.moveaxis(a, p.layout.axis, 0).reshape(p.channels, -1) for a in (p.x, y, kept)]
    found = []
    for x, value, chosen in zip(*rows, strict=True):
        at = chosen.astype(bool)
        step = x[at] - x[at].mean() if at.any() else x[at]
        found.append(float(step @ value[at] / (step @ step)))
    return np.array(found)


# ----------------------------------------------------------------------------- an eps of the backward alone


def _with_another_eps(fit: Fit, large: Fit) -> Fit:
    """The fit whose unexplained gradients have the mistakes found without eps, and an eps of their own."""
    e, beside = fit.best[0], large.best[0]
    predictor = fit.predictor(e.correction)
    explained, own = dict(e.outputs), dict(fit.own_eps)
    for output in (o for o in _unexplained(fit) if o in BACKWARD and beside.outputs.get(o)):
        observed = fit.flat(e.correction, output)
        for chosen, formulation in _eps_mistakes(large, output, e.forward if fit.runner.uses_cache else ()):
            inherited = e.forward if fit.runner.uses_cache else ()
            predicted = predictor.predict(output, inherited, formulation, chosen)
            if _same(predicted, observed, max(fit.tolerance, 1e-9)):
                explained[output] = (frozenset(m.name for m in chosen),)
                place = dict(chosen[-1].faults)["backward_eps"]
                own |= {output: place} if isinstance(place, float) else {}
                break
    best = replace(e, outputs=explained)
    return replace(fit, best=[best], own_eps=own) if best.cost[0] < e.cost[0] else fit


def _eps_mistakes(
    large: Fit, output: str, inherited: tuple[Mistake, ...]
) -> Iterator[tuple[tuple[Mistake, ...], Formulation]]:
    """The sets that explain an output where eps is invisible, each with another eps in the backward."""
    bases = _sets(large, output) or [()]
    places: list[str | float] = [*_USUAL_EPS, "missing", "outside"]
    for base, value, where in product(bases, places, _WHERE):
        faults = (("backward_eps", value), ("backward_where", where))
        other = Mistake(OTHER, *TITLES[OTHER], faults) if isinstance(value, float) else _known(faults)
        if compatible((*base, other)):
            for formulation in FORMULATIONS if inherited else (CLOSED,):
                yield (*base, other), formulation


def _known(faults: tuple[tuple[str, str | float], ...]) -> Mistake:
    """The mistake of the catalogue that sets these faults."""
    return next(one for (one,) in sets_of("dx", 1, frozenset()) if set(one.faults) == set(faults))
