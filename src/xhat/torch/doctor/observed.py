"""A diagnosis without batches: what a watch saw, or what a checkpoint holds. No mode was run, and no loss compared."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xhat.errors import ArgumentError
from xhat.torch.doctor.diagnosis import Diagnosis
from xhat.torch.doctor.findings import Finding, Severity, Unjudged, by_severity
from xhat.torch.doctor.thresholds import LISTED

if TYPE_CHECKING:
    from xhat.torch.doctor.treat import Treatment

__all__ = ["Observed", "observation", "row"]

_MODES = ("evaluation", "batch", "pooled", "train")
_SIGNALS = ("shift", "log_variance", "icc", "noise", "left", "m", "repair")


class Observed(Diagnosis):
    """A `Diagnosis` whose modes are None. `model` is the model's class, or the file's name."""

    @classmethod
    def of(
        cls, model: str, layers: list[dict[str, Any]], findings: list[Finding], unjudged: Sequence[Unjudged]
    ) -> "Observed":
        """An observation, its findings in their order."""
        return cls(model, "loss", 0, dict.fromkeys(_MODES), layers, by_severity(findings), list(unjudged))

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        if not self.layers:
            return f"{self.model} has no running statistics: no batch norm can be judged."
        n, harmful = len(self.findings), [f for f in self.findings if f.severity == "harmful"]
        if harmful:
            more = f" and {n - 1} more finding{'s' * (n > 2)}" if n > 1 else ""
            return f"{self.model}: {harmful[0].cause}{more}."
        others = f"; {n} other finding{'s' * (n > 1)}" if n else ""
        count = f"{len(self.layers)} batch norm{'s' * (len(self.layers) > 1)}"
        return f"{self.model}: nothing harmful was seen in {count}{others}."

    def treat(self) -> "Treatment":
        """Raises ArgumentError: only a remedy that was measured on batches is applied."""
        raise ArgumentError(
            "treat: no batches were measured, expected a diagnosis of xt.diagnose(model, batches)."
        )

    def __str__(self) -> str:
        unjudged = [f"not judged: {cause}: {reason}" for cause, reason in self.not_judged]
        return "\n".join([self.summary, *self._findings(), *([""] if unjudged else []), *unjudged])


def row(layer: str, kind: str, channels: int, **known: Any) -> dict[str, Any]:
    """A layer as a diagnosis reports it; what needs batches is None."""
    return {
        "layer": layer, "class": kind, "channels": channels, "calls": None, "training": None, "frozen": False,
        **dict.fromkeys(_SIGNALS),
    } | known  # fmt: skip


def observation(
    cause: str, severity: Severity, layers: Sequence[str], symptom: str, why: str, remedy: str, code: str,
    **evidence: Any,
) -> Finding:  # fmt: skip
    """A finding without a proof; of many layers, it lists the first ones and counts all."""
    evidence |= {"layers": len(layers)}
    return Finding(cause, severity, tuple(layers[:LISTED]), symptom, evidence, why, remedy, code)
