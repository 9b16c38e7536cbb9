"""torch.ao.quantization.fuse_modules for xhat's layers: they become torch's again, and are fused as those are.

That tool finds a fusion by the exact classes of the modules, in a dictionary, to which the classes of xhat's are added.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from xhat.errors import ArgumentError
from xhat.torch.convert.layers import XHAT_CLASS, inexpressible_options, revert_layer
from xhat.torch.internals import FUSIONS_OF_QUANTIZATION
from xhat.torch.nn import BatchNorm

__all__ = ["register_fusions"]


def register_fusions() -> None:
    """Adds each of torch's fusions for the classes of xhat's."""
    for kinds, fuse in list(FUSIONS_OF_QUANTIZATION.items()):
        ours = tuple(XHAT_CLASS.get(kind, kind) for kind in kinds)
        if ours != kinds:
            FUSIONS_OF_QUANTIZATION[ours] = _reverting(fuse)


def _reverting(fuse: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A fusion of torch's that takes xhat's layers."""

    @functools.wraps(fuse)
    def fused(is_qat: Any, *modules: nn.Module) -> nn.Module:
        layers = [m for m in modules if isinstance(m, BatchNorm)]
        problems = [what for layer in layers for what in inexpressible_options(layer)]
        if problems:
            raise ArgumentError(
                f"fuse_modules: a batch norm has {', '.join(problems)}, which torch's layer can't express. Set the "
                "options to torch's first (xhat.torch.unfreeze for what is frozen)."
            )
        for layer in layers:
            revert_layer(layer)
        return fuse(is_qat, *modules)

    return fused
