"""Models for the tests of fold, with statistics that hide nothing, and the float64 reference. No test lives here."""

import copy
import zlib
from typing import Any

import torch
from torch import Tensor, nn


def numbers(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers; the seed is a name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def evaluated(model: Any) -> Any:
    """The model in evaluation, with random parameters, and statistics far from 0 and 1."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        for p in module._parameters.values():
            if p is not None and not nn.parameter.is_lazy(p):
                with torch.no_grad():
                    p.copy_(torch.randn(p.shape, generator=generator))
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator) * 2)
            module.running_var.copy_(0.2 + 4 * torch.rand(module.running_var.shape, generator=generator))
    return model.eval()


def in_float64(model: nn.Module, *args: Any) -> Tensor:
    """y in float64, of a copy."""
    with torch.no_grad():
        found: Tensor = copy.deepcopy(model).double()(*(a.double() for a in args))
    return found


def off(model: nn.Module, reference: nn.Module, *args: Any) -> float:
    """The largest |y - y'| of two models with their parameters as they are, both evaluated in float64."""
    return float((in_float64(model, *args) - in_float64(reference, *args)).abs().max())


def norms_in(model: nn.Module) -> int:
    """How many batch norms are in the model."""
    return sum(getattr(m, "running_mean", None) is not None for m in model.modules())


def state_bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state."""
    return {name: value.clone() for name, value in model.state_dict().items()}


class OneUse(nn.Module):
    """A convolution and a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Between(nn.Module):
    """What `between` does with the convolution's output, before the batch norm."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.between = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), between

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.between(self.conv(x))))
