"""The tensors of one module as a state dict has them. Nothing is read from files here, and nothing is judged."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Stored"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Stored:
    """The tensors of one module, in float64. Without running statistics, mean and var are empty."""

    path: str
    mean: Array
    var: Array
    weight: Array | None
    bias: Array | None
    tracked: int | None
    dtype: torch.dtype | None

    @classmethod
    def of(cls, path: str, tensors: Mapping[str, Tensor]) -> "Stored":
        """From torch's names."""
        values = {
            name: tensors[name].detach().to("cpu", torch.float64).numpy().reshape(-1)
            for name in ("running_mean", "running_var", "weight", "bias")
            if name in tensors and (name.startswith("running") or tensors[name].dim() == 1)
        }
        counter = tensors.get("num_batches_tracked")
        return cls(
            path,
            values.get("running_mean", np.empty(0)),
            values.get("running_var", np.empty(0)),
            values.get("weight"),
            values.get("bias"),
            int(counter) if counter is not None and counter.numel() == 1 and counter.isfinite() else None,
            tensors["running_var"].dtype if "running_var" in tensors else None,
        )

    @property
    def tracks(self) -> bool:
        """Whether it has running statistics."""
        return len(self.mean) == len(self.var) > 0

    @property
    def channels(self) -> int:
        """C."""
        return len(self.var)

    @property
    def initial(self) -> bool:
        """Whether the running statistics are 0 and 1."""
        return self.tracks and not np.any(self.mean) and bool(np.all(self.var == 1))

    @property
    def trained(self) -> bool:
        """Whether its bias differs between channels, which no common initialization makes; without one, its weight."""
        values = self.weight if self.bias is None else self.bias
        return values is not None and len(values) > 1 and bool(np.any(values != values[0]))
