"""Conventions that are no mistakes: an activation after batch norm, and other meanings of gamma.

The exact computation stays that of `reference`; here its input and output are translated.
"""

from dataclasses import dataclass, replace

import numpy as np

from xhat import equations
from xhat.lens.checker.expected.probes import Probe
from xhat.lens.checker.expected.reference import affine
from xhat.lens.checker.expected.steps import Backward, Faults, Forward

__all__ = ["OTHERS", "PLAIN", "Convention"]


@dataclass(frozen=True)
class Convention:
    """y = act(scale(gamma) xhat + beta), with an activation of `equations.activate`."""

    words: str = ""
    activation: str | None = None
    slope: float = 0.0
    scale: str = ""

    def scaled(self, p: Probe) -> Probe:
        """The probe with scale(gamma) for gamma."""
        if self.scale == "1 + gamma":
            return replace(p, gamma=1 + p.gamma)
        return replace(p, gamma=np.abs(p.gamma) + (p.eps if "eps" in self.scale else 0)) if self.scale else p

    def activated(self, f: Forward) -> Forward:
        return f._replace(y=equations.activate(f.y, self.activation, self.slope, np))

    def inner(self, p: Probe, f: Forward, faults: Faults) -> Probe:
        """The scaled probe with the gradient before the activation for dy."""
        if self.activation is None:
            return p
        pre = equations.normalize(p.x, f.mu, f.rstd, *affine(p, faults))
        return replace(p, dy=p.dy * equations.activation_slope(pre, self.activation, self.slope, np))

    def outer(self, raw: Probe, b: Backward) -> Backward:
        """The backward of the scaled probe, with the gradient of the raw gamma."""
        return b._replace(dgamma=b.dgamma * np.sign(raw.gamma)) if "|" in self.scale else b


PLAIN = Convention()
OTHERS = (
    Convention("ReLU after it", "leaky_relu"),
    *(Convention(f"leaky ReLU with slope {k:g} after it", "leaky_relu", k) for k in (0.01, 0.1, 0.2)),
    Convention("SiLU after it", "silu"),
    *(Convention(f"{scale} scales", scale=scale) for scale in ("|gamma|", "|gamma| + eps", "1 + gamma")),
    Convention(
        "leaky ReLU with slope 0.01 after it, |gamma| + eps scales", "leaky_relu", 0.01, "|gamma| + eps"
    ),
)
