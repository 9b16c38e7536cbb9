"""DistributedDataParallel around a walk: buffers are broadcast before it, and gradients are reduced once after it.

Both are done by passes of zeros through the wrapper, so that its options, buckets and hooks are in force.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["reduced_once"]


class Zero(nn.Module):
    """The parameters, buffers and children of a module, whose output is 0, with gradients of 0."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.training, self._parameters, self._buffers, self._modules = (
            of.training,
            of._parameters,
            of._buffers,
            of._modules,
        )

    def forward(self) -> Tensor:
        """The sum of 0 times one element of each parameter."""
        return torch.stack([0 * p.flatten()[:1].sum() for p in self.parameters() if p.requires_grad]).sum()


@contextmanager
def reduced_once(model: Any) -> Iterator[None]:
    """Surrounds a walk of the module that is wrapped."""
    if not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync():
        _pass(model)
    yield
    if model.require_backward_grad_sync:
        _pass(model).backward()


def _pass(ddp: DistributedDataParallel) -> Tensor:
    inner = ddp.module
    ddp.module = Zero(inner)
    try:
        result: Tensor = ddp()
        return result
    finally:
        ddp.module = inner
