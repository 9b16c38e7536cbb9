"""What a walk changes, and how it is put back where the walk fails."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from xhat.errors import ArgumentError
from xhat.torch.accumulate.in_step import random_states, set_random_states

__all__ = ["buffers_stay", "gradients_added", "state_kept"]


@contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """If the block raises, buffers and random states become what they were."""
    before = [(b, b.detach().clone()) for b in model.buffers()]
    random = random_states()
    try:
        yield
    except BaseException:
        set_random_states(random)
        with torch.no_grad():
            for b, value in before:
                if not _same(b, value):
                    b.copy_(value)
        raise


@contextmanager
def buffers_stay(model: nn.Module, layers: dict[str, Any]) -> Iterator[None]:
    """Raises ArgumentError at the end if a buffer of other modules than these layers has changed."""
    moving = {id(b) for layer in layers.values() for b in layer.buffers(recurse=False)}
    before = [(path, b, b.detach().clone()) for path, b in model.named_buffers() if id(b) not in moving]
    yield
    for path, b, value in before:
        if not _same(b, value):
            raise ArgumentError(
                f"accumulate: buffer {path!r} changes in each forward pass, and there is one for every micro-batch, "
                "expected that only batch norms change theirs. Put its module in evaluation mode."
            )


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values, NaN included."""
    return a.shape == b.shape and bool(torch.equal(a, b) or torch.allclose(a, b, 0, 0, equal_nan=True))


@contextmanager
def gradients_added(model: nn.Module) -> Iterator[None]:
    """New gradients inside; they are added to the old ones at the end, or dropped if the block raises."""
    before = [(p, p.grad) for p in model.parameters()]
    for p, _ in before:
        p.grad = None
    try:
        yield
    except BaseException:
        for p, old in before:
            p.grad = old
        raise
    for p, old in before:
        if old is not None:
            new, p.grad = p.grad, old
            if new is not None:
                old.add_(new)
