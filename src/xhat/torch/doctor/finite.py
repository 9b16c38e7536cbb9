"""The first step after which a tensor is not finite, found without waiting for a device in every step."""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FirstNotFinite"]

# The results of this many steps are read together.
STEPS_BETWEEN_READS = 16


class _Unread(NamedTuple):
    """What is finite after a step, of all tensors on one device: their lengths, and one bool an element."""

    step: int
    lengths: dict[str, int]
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

    def look(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Begins the reduction for one step; what many steps gave is read at once."""
        if self.step is not None:
            return
        devices: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in tensors.items():
            devices[tensor.device][name] = tensor
        with torch.no_grad():
            for there in devices.values():
                values = torch.cat([t if t.dim() == 1 else t.reshape(-1) for t in there.values()])
                lengths = {name: t.numel() for name, t in there.items()}
                self._unread.append(_Unread(step, lengths, values.isfinite()))
        if step % STEPS_BETWEEN_READS == 0:
            self.read()

    def read(self) -> None:
        """Waits for the results that were not read yet."""
        for step, lengths, finite in self._unread:
            if self.step not in (None, step):
                break
            if not finite.all():
                self.step = step
                parts = zip(lengths, finite.split(list(lengths.values())), strict=True)
                self.names += [name for name, part in parts if not part.all()]
        self._unread.clear()
