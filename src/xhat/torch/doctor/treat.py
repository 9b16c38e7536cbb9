"""The remedies that are safe, applied to the model, and taken back. Which remedies a finding needs is decided here.

A remedy is safe if it changes statistics or options of batch norms alone, was measured on a copy, and can be undone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from xhat.errors import ArgumentError
from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import Finding
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.trials import is_stuck
from xhat.torch.freeze import freeze
from xhat.torch.nn import BatchNorm
from xhat.torch.recalibrate import write
from xhat.torch.sync.merge import Moments

if TYPE_CHECKING:
    from xhat.torch.doctor.diagnosis import Diagnosis

__all__ = ["Treatment", "treat"]

DEFAULT_MOMENTUM = 0.1


@dataclass
class Treatment:
    """What `Diagnosis.treat` did to a model.

    Print it for one line a finding.

    Attributes
    ----------
    applied : list of tuple
        Pairs of a cause and what was done.
    not_applied : list of tuple
        Pairs of a cause and why nothing was done.
    """

    applied: list[tuple[str, str]] = field(default_factory=list)
    not_applied: list[tuple[str, str]] = field(default_factory=list)
    _before: dict[int, tuple[Any, dict[str, Any], list[tuple[Tensor, Tensor]]]] = field(
        default_factory=dict, repr=False
    )

    def undo(self) -> None:
        """Take back all that was applied: buffers, options and modes of the layers are as before, bit for bit."""
        for module, attributes, values in self._before.values():
            vars(module).clear()
            vars(module).update(attributes)
            for buffer, value in values:
                buffer.data.copy_(value)
        self._before.clear()

    def remember(self, layer: Layer) -> None:
        """Keeps what the layer has now, unless it is kept already."""
        module = layer.module
        if id(module) not in self._before:
            buffers = [(b, b.detach().clone()) for b in module._buffers.values() if b is not None]
            self._before[id(module)] = module, dict(vars(module)), buffers

    def __str__(self) -> str:
        done = [f"applied      {cause}: {what}" for cause, what in self.applied]
        left = [f"not applied  {cause}: {why}" for cause, why in self.not_applied]
        return "\n".join([*done, *left]) or "There was nothing to treat."


def treat(diagnosis: "Diagnosis") -> Treatment:
    """Applies the remedies of these findings that are safe. Raises ArgumentError for a diagnosis without a model."""
    measured = diagnosis._measured
    if measured is None:
        raise ArgumentError(
            "treat: the diagnosis has no model, expected one of xt.diagnose(model, batches). Diagnose the model itself."
        )
    done = Treatment()
    for finding in diagnosis.findings:
        remedy = _REMEDIES.get(finding.cause)
        if remedy is None or (finding.severity != "harmful" and finding.cause not in _STRUCTURAL):
            done.not_applied.append((finding.cause, f"left to you: {finding.remedy}"))
        else:
            what, applied = remedy(done, measured, finding)
            (done.applied if applied else done.not_applied).append((finding.cause, what))
    return done


# ---------------------------------------------------------------------------------------------------- the remedies

Remedy = Callable[[Treatment, Measured, Finding], tuple[str, bool]]


def _recalibrated(
    done: Treatment, measured: Measured, layers: list[Layer], moments: Callable[[Any], Moments]
) -> str:
    """Writes the moments of the batches that were diagnosed. They were measured: no batch is needed again."""
    for layer in layers:
        tap = measured.tap(layer)
        if layer.tracks and tap.batches:
            done.remember(layer)
            write(layer.module, moments(tap), tap.calls)
    return f"recalibrated {len(layers)} layer{'s' * (len(layers) != 1)} with the moments of {measured.count} batches"


def _recalibrate(done: Treatment, measured: Measured, finding: Finding) -> tuple[str, bool]:
    layers = [x for x in measured.layers if x.tracks and not x.fixed and measured.tap(x).batches]
    return _recalibrated(done, measured, layers, lambda tap: tap.pooled), True


def _momentum(done: Treatment, measured: Measured, finding: Finding) -> tuple[str, bool]:
    wrong = [x for x in measured.layers if x.momentum is not None and not x.fixed
             and (x.momentum == 0 or x.momentum > at.REVERSED_MOMENTUM)]  # fmt: skip
    for layer in wrong:
        done.remember(layer)
        layer.module.momentum = DEFAULT_MOMENTUM
    what = f"set momentum={DEFAULT_MOMENTUM} in {len(wrong)} layer{'s' * (len(wrong) != 1)}"
    if finding.severity == "harmful":
        what += f", {_recalibrate(done, measured, finding)[0]}"
    return what, True


def _without_padding(done: Treatment, measured: Measured, finding: Finding) -> tuple[str, bool]:
    layers, _ = measured.trials["padding-counted"]
    what = _recalibrated(done, measured, layers, lambda tap: tap.unpadded)
    return f"{what}, without padding; training needs a mask", True


def _held(done: Treatment, measured: Measured, finding: Finding) -> tuple[str, bool]:
    layers, _ = measured.trials["eval-mode-in-training"]
    return _recalibrated(done, measured, layers, lambda tap: tap.pooled), True


def _evaluation(done: Treatment, measured: Measured, finding: Finding) -> tuple[str, bool]:
    stuck = [x for x in measured.layers if is_stuck(measured, x)]
    for layer in stuck:
        done.remember(layer)
        layer.module.training = False
    return f"put {len(stuck)} layers into evaluation mode", bool(stuck)


def _freeze(done: Treatment, measured: Measured, finding: Finding) -> tuple[str, bool]:
    layers = [x for x in measured.layers if x.path in finding.layers]
    if not all(isinstance(x.module, BatchNorm) for x in layers):
        return "xt.freeze needs xhat's layers: call xt.convert(model) first", False
    for layer in layers:
        done.remember(layer)
        freeze(layer.module, affine=False)
    return f"froze the statistics of {len(layers)} layers", True


_STRUCTURAL = ("momentum", "frozen-but-moving")
_REMEDIES: dict[str, Remedy] = {
    "statistics-not-finite": _recalibrate,
    "statistics-never-updated": _recalibrate,
    "statistics-not-converged": _recalibrate,
    "statistics-of-other-weights": _recalibrate,
    "statistics-of-other-data": _recalibrate,
    "dropout-before-batch-norm": _recalibrate,
    "momentum": _momentum,
    "padding-counted": _without_padding,
    "eval-mode-in-training": _held,
    "train-mode-in-evaluation": _evaluation,
    "frozen-but-moving": _freeze,
}
