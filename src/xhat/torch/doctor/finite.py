"""The first step after which a tensor is not finite, found without waiting for a device in every step."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FirstNotFinite"]

# The results of this many steps are read together.
STEPS_BETWEEN_READS = 16


class _Unread(NamedTuple):
    """What is finite after a step, of all tensors on one device: one bool for each of their elements."""

    step: int
    names: list[str]
    tensors: list[Tensor]
    finite: Tensor


class FirstNotFinite:
    """The first step after which one of the tensors given to `look` has NaN or infinity, and the names of these.

    step    None as long as all that was read is finite
    names   in the order in which they were given
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.names: list[str] = []
        self._unread: list[_Unread] = []

    def look(self, step: int, named: Iterable[tuple[str, Tensor]]) -> None:
        """Begins the reduction for one step; what many steps gave is read at once."""
        if self.step is not None:
            return
        devices: dict[torch.device, tuple[list[str], list[Tensor]]] = {}
        for name, tensor in named:
            names, tensors = devices.setdefault(tensor.device, ([], []))
            names.append(name)
            tensors.append(tensor if tensor.dim() == 1 else tensor.reshape(-1))
        with torch.no_grad():
            for names, tensors in devices.values():
                self._unread.append(_Unread(step, names, tensors, torch.cat(tensors).isfinite()))
        if step % STEPS_BETWEEN_READS == 0:
            self.read()

    def read(self) -> None:
        """Waits for the results that were not read yet."""
        for step, names, tensors, finite in self._unread:
            if self.step not in (None, step):
                break
            if not finite.all():
                self.step = step
                parts = finite.split([tensor.numel() for tensor in tensors])
                self.names += [name for name, part in zip(names, parts, strict=True) if not part.all()]
        self._unread.clear()
