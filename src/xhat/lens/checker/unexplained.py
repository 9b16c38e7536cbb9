"""Where an error shows that no known mistake explains: which output, which channels, along which path.

A description, never a diagnosis.
"""

import numpy as np

from xhat.lens.checker.probes import Array, Probe
from xhat.lens.checker.reference import Backward

__all__ = ["describe"]


def describe(
    output: str, seen: list[Array], exact: list[Array], paths: list[Backward], probes: tuple[Probe, ...]
) -> str:
    """One sentence about an output that differs from the exact one on some probe."""
    differing = [i for i, (s, e) in enumerate(zip(seen, exact, strict=True)) if s.size != e.size]
    if differing:
        i = differing[0]
        return (
            f"{output}: can't name the mistake; on x of shape {probes[i].x.shape} it has shape {seen[i].shape}, "
            f"expected {exact[i].squeeze().shape if output != 'dx' else exact[i].shape}"
        )
    i = int(np.argmax([np.abs(s.reshape(e.shape) - e).max() for s, e in zip(seen, exact, strict=True)]))
    probe, found, expected = probes[i], seen[i].reshape(exact[i].shape), exact[i]
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
    """The error of dx as a combination of the three paths, channel by channel."""
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
