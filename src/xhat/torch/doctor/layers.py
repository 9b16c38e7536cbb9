"""Which modules of a model are batch norms, and what each may do. Nothing runs here."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from xhat.errors import ArgumentError
from xhat.torch.inputs import check_known
from xhat.torch.recalibrate import unwrapped as without_wrappers

__all__ = ["Layer", "batch_norms", "checked", "unwrapped"]

Array = NDArray[np.float64]


@dataclass(eq=False)
class Layer:
    """One batch norm of a model, as it was when the diagnosis began.

    path       its path in the model
    module     the module itself: torch's, xhat's, timm's, a subclass of these, or a FrozenBatchNorm2d
    training   its mode
    fixed      its statistics are constants: FrozenBatchNorm2d, xt.freeze, it has none, or it is held
    held       it is in evaluation mode in a model that is in training mode
    first_rank num_batches_tracked, running mean and variance of the first rank, by which all ranks judge
    """

    path: str
    module: Any
    training: bool
    fixed: bool
    held: bool
    first_rank: tuple[int | None, Any, Any] | None = None

    @property
    def channels(self) -> int:
        """C."""
        mean = self.module.running_mean
        return int(self.module.num_features if mean is None else len(mean))

    @property
    def eps(self) -> float:
        """What the layer adds to the variance."""
        return float(self.module.eps)

    @property
    def momentum(self) -> float | None:
        """The layer's momentum; None if it takes plain averages, or has none."""
        momentum = getattr(self.module, "momentum", None)
        return None if momentum is None else float(momentum)

    @property
    def tracks(self) -> bool:
        """Whether the layer has running statistics that it uses in evaluation."""
        return self.module.running_mean is not None and self.module.running_var is not None

    @property
    def running(self) -> tuple[Array, Array]:
        """Running mean and variance (C,) in float64, of the first rank."""
        if self.first_rank is not None:
            return self.first_rank[1:]
        both = self.module.running_mean, self.module.running_var
        mean, var = (t.detach().cpu().double().numpy() for t in both)
        return mean, var

    @property
    def tracked(self) -> int | None:
        """num_batches_tracked; None where the layer does not count."""
        if self.first_rank is not None:
            return self.first_rank[0]
        counter = getattr(self.module, "num_batches_tracked", None)
        return None if counter is None else int(counter)

    @property
    def left(self) -> float | None:
        """The weight (1 - momentum)^batches that the initial 0 and 1 still have; None if it is unknown.

        running_var = left + (1 - left) var is no less, so that the least one is a bound: the statistics of a
        recalibrated layer, which has counted its calls, have nothing of the initial ones.
        """
        if self.tracked is None or self.fixed:
            return None
        momentum = 1.0 if self.momentum is None else self.momentum
        left = float((1 - momentum) ** self.tracked) if self.tracked else 1.0
        least = float(self.running[1].min(initial=1)) if self.tracks else 1.0
        return min(left, max(0.0, least)) if self.tracked and np.isfinite(least) else left


def unwrapped(model: Any) -> Any:
    """The model without wrappers; of an exported program, its module."""
    # Where torch.export was not loaded, which takes seconds, there is no exported program.
    exported = sys.modules.get("torch.export.exported_program")
    if exported is not None and isinstance(model, exported.ExportedProgram):
        model = model.module()
    return without_wrappers(model, "diagnose")


def batch_norms(model: nn.Module) -> list[Layer]:
    """Every batch norm of the model, each once."""
    found = []
    for path, m in model.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            continue  # its layers are inside of compiled code
        if isinstance(m, _BatchNorm) or _is_frozen_batch_norm(m):
            statistics = getattr(m, "running_mean", None), getattr(m, "running_var", None)
            held = isinstance(m, _BatchNorm) and model.training and not m.training
            fixed = held or not isinstance(m, _BatchNorm) or getattr(m, "frozen_statistics", False)
            missing = any(value is None for value in statistics)
            found.append(Layer(path, m, m.training, bool(fixed or missing), held))
    return found


def _is_frozen_batch_norm(m: nn.Module) -> bool:
    """Whether this is torchvision's FrozenBatchNorm2d, or one of its copies (detectron2): four buffers and an eps."""
    names = ("weight", "bias", "running_mean", "running_var")
    return (
        not isinstance(m, _InstanceNorm)
        and hasattr(m, "eps")
        and all(isinstance(m._buffers.get(name), Tensor) for name in names)
    )


def checked(model: nn.Module, layers: list[Layer]) -> None:
    """Raises ArgumentError for a model that cannot run: lazy layers without a shape, tensors without data."""
    check_known("diagnose", {layer.path: layer.module for layer in layers})
    for path, value in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(value):
            raise ArgumentError(
                f"diagnose: {path!r} is a lazy parameter without a shape. Call the model once with a batch first."
            )
        if value.is_meta:
            raise ArgumentError(
                f"diagnose: {path!r} is on the meta device, without data. Load the model's weights first."
            )
