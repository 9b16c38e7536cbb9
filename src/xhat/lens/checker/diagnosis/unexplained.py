"""Outputs that no known mistake explains: where the error is, and whether it belongs to the backward at all.

`localize` describes an error by channel and by path. `own_gradients` compares a backward with central differences of
its forward, whatever that computes, to six digits and in float64 only.
"""

from dataclasses import replace

import numpy as np

from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.calling.runs import RunResult
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import Backward

__all__ = ["localize", "own_gradients"]


def localize(
    output: str, observed: list[Array], exact: list[Array], paths: list[Backward], probes: tuple[Probe, ...]
) -> str:
    """One sentence about an output that differs from the exact one on some probe."""
    differing = [i for i, (s, e) in enumerate(zip(observed, exact, strict=True)) if s.size != e.size]
    if differing:
        i = differing[0]
        return (
            f"{output}: can't name the mistake; on x of shape {probes[i].x.shape} it has shape {observed[i].shape}, "
            f"expected {exact[i].squeeze().shape if output != 'dx' else exact[i].shape}"
        )
    i = int(np.argmax([np.abs(s.reshape(e.shape) - e).max() for s, e in zip(observed, exact, strict=True)]))
    probe, found, expected = probes[i], observed[i].reshape(exact[i].shape), exact[i]
    if not np.isfinite(found).all():
        return f"{output}: can't name the mistake; {int((~np.isfinite(found)).sum())} of its values are not finite"
    error = found - expected
    text = f"{output}: can't name the mistake; {_channels(error, expected, probe)}"
    if output == "dx":
        text += f"; {_along(error, paths[i], probe)}"
    factor = _factor(found, expected)
    return text + (f"; it is {factor:.6g} times the exact one" if factor is not None else "")


def _per_channel(values: Array, probe: Probe) -> Array:
    axes = tuple(a for a in range(values.ndim) if a != probe.layout.axis)
    return np.asarray(np.sqrt((values**2).sum(axis=axes)))


def _channels(error: Array, exact: Array, probe: Probe) -> str:
    shares = _per_channel(error, probe) / np.maximum(_per_channel(exact, probe), 1e-300)
    wrong = [c for c, share in enumerate(shares) if share > 1e-3 * shares.max()]
    where = "every channel" if len(wrong) == len(shares) else f"channel{'s' * (len(wrong) > 1)} {wrong}"
    return f"it is off in {where} (of {len(shares)}), at most by {shares.max():.1%} of the exact one"


def _along(error: Array, paths: Backward, probe: Probe) -> str:
    """The error of dx as a linear combination of the three paths, fitted in every channel."""
    axis = probe.layout.axis
    names = ("direct", "mean", "variance")
    rows = [
        np.moveaxis(np.broadcast_to(getattr(paths, n), error.shape), axis, 0).reshape(probe.channels, -1)
        for n in names
    ]
    wrong = np.moveaxis(error, axis, 0).reshape(probe.channels, -1)
    factors = np.array(
        [
            np.linalg.lstsq(np.array([r[c] for r in rows]).T, wrong[c], rcond=None)[0]
            for c in range(len(wrong))
        ]
    )
    fitted = sum(factors[:, [k]] * row for k, row in enumerate(rows))
    outside = float(((wrong - fitted) ** 2).sum() / (wrong**2).sum())
    if outside > 0.5:
        return f"{outside:.0%} of the error lies outside the three paths (another term, or channels mixed)"
    strength = np.abs(factors).max(axis=0)
    shown = []
    for k, name in enumerate(names):
        low, high = factors[:, k].min(), factors[:, k].max()
        if strength[k] > 1e-6 * strength.max():
            span = (
                f"{low:+.4g}"
                if high - low < 1e-6 * strength.max()
                else f"{low:+.3g} to {high:+.3g} by channel"
            )
            shown.append(f"{span} times the {name} path")
    rest = f", and {outside:.0%} outside the paths" if outside > 1e-6 else ""
    return f"the error is {', '.join(shown)}{rest}"


def _factor(found: Array, exact: Array) -> float | None:
    factor = float((found * exact).sum() / (exact**2).sum())
    return factor if np.abs(found - factor * exact).max() < 1e-6 * np.abs(exact).max() else None


_ACCURACY = 1e-6
_ARGUMENTS = {"dx": "x", "dgamma": "gamma", "dbeta": "beta"}


def own_gradients(runner: Runner, p: Probe, result: RunResult) -> set[str]:
    """The outputs of the backward that are the derivatives of sum(y dy), by central differences."""
    if runner.spec.dtype != "float64" or runner.forward is None:
        return set()
    alone = replace(runner, backward=None)
    return {
        output
        for output in _ARGUMENTS
        if output in result.outputs and _agrees_with_differences(alone, p, output, result.outputs[output])
    }


def _agrees_with_differences(runner: Runner, p: Probe, output: str, found: Array) -> bool:
    argument = getattr(p, _ARGUMENTS[output])
    if found.size != argument.size:
        return False
    slopes = np.array([_slope(runner, p, _ARGUMENTS[output], i) for i in range(argument.size)])
    size = max(float(np.abs(slopes).max()), float(np.abs(p.dy).max()))
    return bool(np.abs(slopes - found.ravel()).max() <= _ACCURACY * size)


def _slope(runner: Runner, p: Probe, name: str, index: int) -> float:
    values = getattr(p, name)
    step = 1e-5 * float(np.abs(values).max())
    ends = []
    for sign in (1, -1):
        moved = values.copy()
        moved.ravel()[index] += sign * step
        y = runner.run(replace(p, **{name: moved})).outputs["y"]
        ends.append(float((y * p.dy).sum()))
    return (ends[0] - ends[1]) / (2 * step)
