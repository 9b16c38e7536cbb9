"""Results beside the exact ones, value by value, with the rounding that is allowed.

Only arrays live here: `data` and `diagnose` judge them, and `page` shows them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.expected.steps import Backward

if TYPE_CHECKING:
    from xhat.lens.checker.diagnosis.fit import Fit

__all__ = ["Comparison", "compared"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The results of one batch: `yours` and `exact` by output, `allowed` the bound on the error of every value."""

    title: str
    probe: Probe
    yours: dict[str, Array]
    exact: dict[str, Array]
    allowed: dict[str, Array]
    paths: Backward

    def difference(self, output: str) -> Array:
        """yours - exact; NaN where yours is not finite."""
        exact = self.exact[output]
        found = self.yours[output].reshape(exact.shape)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(np.isfinite(found), found - exact, np.nan))

    def ratio(self, output: str) -> float:
        """The largest error relative to what is allowed; infinite if a value is not finite, or of another shape."""
        if self.yours[output].size != self.exact[output].size:
            return float("inf")
        with np.errstate(all="ignore"):
            off = np.abs(self.difference(output))
            ratios = np.where(off == 0, 0.0, off / self.allowed[output])
        ratios = np.where(np.isfinite(self.exact[output]), ratios, 0.0)  # an exact result that is undefined
        return float(np.nan_to_num(ratios, nan=np.inf).max(initial=0.0))

    def error(self, output: str) -> float | None:
        """The largest error relative to the largest exact value; None if it is undefined."""
        if self.yours[output].size != self.exact[output].size:
            return None
        off = np.abs(self.difference(output)).max(initial=0.0)
        scale = np.abs(self.exact[output]).max(initial=0.0)
        return float(off / scale) if scale and np.isfinite(off / scale) else None


def compared(fit: "Fit") -> Comparison:
    """The largest batch of a fit beside the exact results by its conventions."""
    correction = fit.best[0].correction
    predictor = fit.predictor(correction)
    f, b = predictor.forwards()[-1], predictor.backwards()[-1]
    exact = {"y": f.y, "dx": b.dx, "dgamma": b.dgamma, "dbeta": b.dbeta}
    yours = {
        output: fit.runs[0 if output == "y" else correction][-1].outputs[output] for output in fit.outputs()
    }
    allowed = {o: np.full(exact[o].shape, fit.tolerance * predictor.scale(o)) for o in exact}
    shown = {o: v.reshape(exact[o].shape) if v.size == exact[o].size else v for o, v in yours.items()}
    return Comparison(fit.batch[-1].layout.name, fit.batch[-1], shown, exact, allowed, b)
