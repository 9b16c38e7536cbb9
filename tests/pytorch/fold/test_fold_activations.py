"""What was inside the folded layer stays behind the convolution. The reference is the unfolded model in float64."""

import copy
from typing import Any

import pytest
import torch
from models import Between, OneUse, evaluated, norms_in, numbers, off
from torch import Tensor, nn

import xhat.torch as xt


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.2), "silu"], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with a residual"])
@pytest.mark.usefixtures("recorder")
def test_an_activation_inside_of_our_layer_stays_as_one_behind_the_convolution(
    activation: Any, residual: bool
) -> None:
    class Fused(OneUse):
        def __init__(self) -> None:
            super().__init__()
            self.bn = xt.BatchNorm2d(5, activation=activation)

        def forward(self, x: Tensor) -> Tensor:
            return (
                self.bn(self.conv(x), residual=x[:, :1, 1:-1, 1:-1].expand(-1, 5, -1, -1))
                if residual
                else super().forward(x)
            )

    folded, (change,) = xt.fold(evaluated(model := Fused()), x := numbers("fused", 2, 3, 7, 9))
    assert change.into == ("conv",) and norms_in(folded) == 0
    assert off(folded, model, x) <= change.bound
    rest = {None: nn.Identity, "relu": nn.ReLU, "silu": nn.SiLU}
    assert residual or type(folded.bn) is rest.get(activation, nn.LeakyReLU)


def test_a_batch_norm_behind_one_with_an_activation_is_left() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), xt.BatchNorm2d(5, activation="relu"), nn.BatchNorm2d(5), nn.ReLU()
    )
    folded, changes = xt.fold(evaluated(model), x := numbers("chain", 2, 3, 7, 9))
    assert [c.into for c in changes] == [("0",), ()]
    assert off(folded, model, x) <= changes[0].bound * 10


def test_a_converted_model_is_folded_like_the_original() -> None:
    model = evaluated(nn.Sequential(Between(nn.Identity()), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.SiLU()))
    converted, changes = xt.convert(copy.deepcopy(model))
    assert [c.fused for c in changes] == ["relu", "silu"]
    folded, changes = xt.fold(converted, x := numbers("converted", 2, 3, 7, 9))
    assert [c.into for c in changes] == [("0.conv",), ("1",)]
    assert off(folded, model, x) <= 1e-5


class FrozenBatchNorm2d(nn.Module):
    """As torchvision and detectron2 have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


def test_a_frozen_copy_is_folded_in_training_mode_too() -> None:
    model = OneUse()
    model.bn = FrozenBatchNorm2d(5)
    folded, (change,) = xt.fold(evaluated(model).train(), x := numbers("frozen", 2, 3, 7, 9))
    assert change.into == ("conv",)
    assert off(folded, model, x) <= change.bound


def test_our_frozen_layer_is_folded_in_training_mode() -> None:
    model = xt.freeze(xt.convert(evaluated(OneUse()))[0]).train()
    folded, (change,) = xt.fold(model, x := numbers("frozen", 2, 3, 7, 9))
    assert change.into == ("conv",)
    assert off(folded, model, x) <= change.bound
