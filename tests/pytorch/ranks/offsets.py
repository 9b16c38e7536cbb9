"""A batch on many ranks by the formulas of other devices, in float32: no offset of x or dy costs digits."""

import itertools

import torch
import torch.distributed as dist
from claims import Claims
from definition import MASKS, Problem, definition, generator, relative
from equality import CHANNELS, ROWS, splits
from torch import Tensor

from xhat.torch import SyncBatchNorm, composed, operators
from xhat.torch.sync import shared_batch

claim = Claims()


def as_elsewhere() -> None:
    """Float32, and no kernels."""
    setattr(composed, "_precision", lambda x, *_: x.dtype)  # noqa: B010
    for module in (operators, shared_batch):
        setattr(module, "engine_for", lambda *_: None)  # noqa: B010


def together(part: Tensor) -> Tensor:
    """The parts of all ranks."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, part)
    return torch.cat(found)  # type: ignore[arg-type]


@claim
def y_and_dx_at_every_offset() -> None:
    as_elsewhere()
    for (name, rows), mask, far, dy_far in itertools.product(
        splits(), MASKS, (0.0, 1e2, 1e4, 1e6), (0.0, 1e2, 1e4, 1e6)
    ):
        g = generator("offsets of ranks")
        x = torch.randn(ROWS, CHANNELS, 40, generator=g) + far
        w = torch.rand(ROWS, 1, 40, generator=g)
        w = torch.ones(ROWS, 1, 40) if mask == "none" else (w > 0.3).float() if mask == "bool" else w
        normal = torch.randn(x.shape, generator=g)
        dy = normal * (w > 0) + dy_far * w
        wide = x.double().requires_grad_()
        y = definition(Problem(wide, mask=w.double()), eps=1e-3).y
        (dx,) = torch.autograd.grad(y, wide, dy.double() - dy_far * w.double())
        layer = SyncBatchNorm(CHANNELS, affine=False, eps=1e-3)
        leaf = x[rows].clone().requires_grad_()
        found = layer(leaf, mask=None if mask == "none" else w[rows])
        (mine,) = torch.autograd.grad(found, leaf, dy[rows])
        what = name, mask, far, dy_far
        error, slope_error = relative(together(found.detach()), y.detach()), relative(together(mine), dx)
        assert error < 1e-6, (what, error)
        assert slope_error < (1e-4 if far * dy_far > 1e9 else 1e-6), (
            what,
            slope_error,
        )  # the rest of the mean


if __name__ == "__main__":
    claim.run()
