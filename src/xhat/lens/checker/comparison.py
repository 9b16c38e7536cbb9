"""Results beside the exact ones, value by value, with the rounding that is allowed.

Only arrays live here: `data` and `diagnose` judge them, and `page` shows them.
"""

from dataclasses import dataclass

import numpy as np

from xhat.lens.checker.probes import Array, Probe
from xhat.lens.checker.reference import Backward

__all__ = ["Comparison"]


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
