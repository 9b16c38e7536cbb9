"""The remedies that are safe, applied to the model, and taken back. Which remedies a finding needs is decided here."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xhat.errors import ArgumentError
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measure import Measured
from xhat.torch.recalibrate import write

if TYPE_CHECKING:
    from xhat.torch.doctor.diagnosis import Diagnosis

__all__ = ["Treatment", "treat"]

_RECALIBRATED = {
    "statistics-never-updated",
    "statistics-not-converged",
    "statistics-of-other-weights",
    "statistics-not-finite",
    "statistics-of-other-data",
    "dropout-before-batch-norm",
    "momentum",
}


@dataclass
class Treatment:
    """What was done: pairs of a cause and a sentence. `undo` gives back every bit."""

    applied: list[tuple[str, str]] = field(default_factory=list)
    not_applied: list[tuple[str, str]] = field(default_factory=list)
    _before: list[tuple[Any, dict[str, Any], list[tuple[Tensor, Tensor]]]] = field(
        default_factory=list, repr=False
    )

    def undo(self) -> None:
        """Takes back all that was applied: buffers, attributes and modes of the layers are as before, bit for bit."""
        while self._before:
            module, attributes, values = self._before.pop()
            vars(module).update(attributes)
            for tensor, value in values:
                tensor.data.copy_(value)

    def __str__(self) -> str:
        done = [f"applied      {cause}: {what}" for cause, what in self.applied]
        left = [f"not applied  {cause}: {why}" for cause, why in self.not_applied]
        return "\n".join([*done, *left]) or "There was nothing to treat."


def treat(diagnosis: "Diagnosis") -> Treatment:
    """Applies the remedies of these findings that are safe."""
    measured = diagnosis._measured
    if measured is None:
        raise ArgumentError(
            "treat: the diagnosis has no model: it was read from a file. Diagnose the model itself."
        )
    done = Treatment()
    for finding in diagnosis.findings:
        if finding.cause in _RECALIBRATED and finding.severity == "harmful":
            _recalibrate(done, measured, finding.cause)
        else:
            done.not_applied.append((finding.cause, f"it is for you to decide: {finding.remedy}"))
    return done


def _recalibrate(done: Treatment, measured: Measured, cause: str) -> None:
    """Makes the moments of the diagnosed batches the running statistics of all layers that move."""
    if any("recalibrated" in what for _, what in done.applied):
        done.applied.append((cause, "recalibrated with the others"))
        return
    layers = [x for x in measured.layers if x.tracks and not x.fixed and measured.tap(x).batches]
    for layer in layers:
        _remember(done, layer)
        tap = measured.tap(layer)
        write(layer.module, tap.pooled, tap.calls)
    done.applied.append(
        (cause, f"recalibrated {len(layers)} layers with the moments of the {measured.count} batches")
    )


def _remember(done: Treatment, layer: Layer) -> None:
    module = layer.module
    values = [(b, b.detach().clone()) for b in module._buffers.values() if b is not None]
    done._before.append((module, {"training": module.training}, values))
