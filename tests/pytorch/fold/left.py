"""Small models with a batch norm that must stay, each with the reason. No test lives here."""

from typing import Any

import torch
import torch.nn.functional as F
from models import OneUse
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune


class CalledTwice(OneUse):
    """The batch norm is on one of two paths from the convolution (pytorch#104593)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.conv(x * 2)


class OutputUsed(OneUse):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


class OutputReturned(OneUse):
    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return {"bn": self.bn(y), "conv": [y]}


class NormCalledTwice(OneUse):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.bn(self.other(x))


class WeightUsed(OneUse):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.conv.weight.square().sum()


class Tied(OneUse):
    """Two layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 5, 3)
        self.other.weight = self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.other(x)


class SharedMemory(OneUse):
    """The weight is a part of another parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.randn(9, 3, 3, 3))
        self.conv.weight = nn.Parameter(self.whole.data[:5])

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + F.conv2d(x, self.whole)[:, :5]


class PartlyUsed(OneUse):
    """A layer that is wider than what is used of it, as in slimmable networks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.conv2d(x, self.conv.weight[:5], self.conv.bias[:5]))


class StatisticsRead(OneUse):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) - self.bn.running_mean.view(1, -1, 1, 1)


class Functional(OneUse):
    """The batch norm is no module (pytorch#122070)."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.Module()
        self.bn.register_buffer("running_mean", torch.zeros(5))
        self.bn.register_buffer("running_var", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.conv(x), self.bn.running_mean, self.bn.running_var)


class MiddleAxis(nn.Module):
    """A linear layer over the last axis of (N, L, C), and a batch norm over the middle one, with L = C."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Linear(7, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x[:, :, 0, :].repeat(1, 2, 1)[:, :5]))


class Doubling(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _constant() -> nn.Module:
    """A batch norm with gamma = 0 before a convolution that pads."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3, padding=1))
    del model[0].weight
    model[0].register_buffer("weight", torch.zeros(3))
    return model


def _changed(change: Any) -> nn.Module:
    model = OneUse()
    change(model)
    return model


def _hook_on(name: str) -> nn.Module:
    return _changed(lambda m: m.get_submodule(name).register_forward_hook(lambda *_: None))


class Nested(nn.Module):
    """The convolution's output is the output of a child, whose hook reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.child, self.bn = nn.Sequential(nn.Conv2d(3, 5, 3)), nn.BatchNorm2d(5)
        self.child.register_forward_hook(lambda module, args, y: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.child(x))


LEFT: dict[str, tuple[nn.Module, str]] = {
    "the convolution is called twice": (CalledTwice(), "conv.weight is used 2 times"),
    "the output has another use": (OutputUsed(), "the output of 'conv' is used 2 times"),
    "the output is returned as well": (OutputReturned(), "the output of 'conv' is used 2 times"),
    "the batch norm is called twice": (NormCalledTwice(), "it is called 2 times"),
    "the weight has another use": (WeightUsed(), "conv.weight is used 2 times"),
    "a tied weight": (Tied(), "conv.weight is used 2 times"),
    "a weight in shared memory": (SharedMemory(), "conv.weight shares its memory with whole"),
    "a partly used weight": (PartlyUsed(), "the weight of the layer beside it is computed in each forward"),
    "statistics that are read": (StatisticsRead(), "its parameters or statistics are used elsewhere"),
    "a function": (Functional(), "torch.nn.functional.batch_norm is called with its buffers"),
    "another axis": (
        MiddleAxis(),
        "its channels are dimension 1 of 3, and those of the linear layer are the last",
    ),
    "a subclass": (
        _changed(lambda m: setattr(m, "bn", Doubling(5))),
        "its class is a subclass of torch's with a forward",
    ),
    "a hook of the convolution": (_hook_on("conv"), "its input is the output of 'conv'"),
    "a hook of the batch norm": (_hook_on("bn"), "it has hooks, or a forward of its own"),
    "a hook of a module around": (Nested(), "its input is the output of 'child'"),
    "weight_norm": (
        _changed(lambda m: parametrizations.weight_norm(m.conv)),
        "the weight of the layer beside it is computed in each forward",
    ),
    "a parametrized batch norm": (
        _changed(lambda m: nn.utils.parametrize.register_parametrization(m.bn, "weight", nn.ReLU())),
        "its parameters are parametrized",
    ),
    "pruning": (
        _changed(lambda m: prune.l1_unstructured(m.conv, "weight", 0.5)),
        "its input is the output of 'conv'",
    ),
    "no statistics": (
        _changed(lambda m: setattr(m, "bn", nn.BatchNorm2d(5, track_running_stats=False))),
        "it has no running statistics",
    ),
    "an activation between them": (
        nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.BatchNorm2d(5), nn.ReLU()),
        "its input is the output of '1', and its output goes to '3'",
    ),
    "zeros between them, and no value that becomes 0": (
        _constant(),
        "its input is the model's input, and '1' pads its output with zeros, which its shift would not reach",
    ),
    "a transposed convolution behind it": (
        nn.Sequential(nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 5, 3)),
        "its input is the model's input, and its shift is no constant behind the transposed convolution '1'",
    ),
}
