"""Layers that convert leaves and revert refuses, with the reasons; and timm's layer, which is converted."""

import copy
import pickle
from collections import OrderedDict
from typing import Any

import blocks
import pytest
import torch
from comparing import same
from torch import nn
from torch.nn.utils import parametrize

import xhat.torch as xt
from xhat.errors import ArgumentError

C = blocks.C


class WithForward(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input) * 2


class WithoutForward(nn.BatchNorm2d):
    """A subclass that adds only a name."""


def _parametrized() -> nn.Module:
    layer = nn.BatchNorm2d(C)
    parametrize.register_parametrization(layer, "weight", nn.Softplus())
    return layer


def _replaced() -> nn.Module:
    layer = nn.BatchNorm2d(C)
    layer.forward = lambda x: x
    return layer


def _named() -> nn.Module:
    layer = nn.BatchNorm2d(C)
    layer.activation = "mine"
    return layer


def _scripted() -> nn.Module:
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.script"):
        return torch.jit.script(nn.BatchNorm2d(C))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.SyncBatchNorm(C), "it exchanges statistics between processes"),
        (lambda: WithForward(C), "its class is a subclass of torch's with a forward of its own"),
        (lambda: WithoutForward(C), "its class is a subclass of torch's with a meaning of its own"),
        (_parametrized, "its parameters are parametrized"),
        (_replaced, "its forward was replaced on the instance"),
        (_named, "it has an attribute 'activation' already"),
        (lambda: xt.BatchNorm2d(C), "it is xhat's already"),
        (lambda: nn.BatchNorm2d(C, eps=0), "batch_norm: eps is 0"),
        (_scripted, "it is compiled by torch.jit"),
    ],
)
def test_what_is_left_is_listed_with_the_reason(make: Any, reason: str) -> None:
    layer = make()
    kind = type(layer)
    model, changes = xt.convert(nn.Sequential(OrderedDict(bn=layer)))
    assert model.bn is layer and type(layer) is kind
    assert len(changes) == 1 and not changes[0].converted
    assert (changes[0].reason or "").startswith(reason)
    assert str(changes[0]).startswith("bn: ") and ", left as it is (" in str(changes[0])


def test_modules_of_quantization_are_left() -> None:
    fused = torch.ao.nn.intrinsic.BNReLU2d(nn.BatchNorm2d(C), nn.ReLU())
    model, changes = xt.convert(nn.Sequential(fused, nn.BatchNorm2d(C)))
    assert [c.reason for c in changes] == ["torch.ao's modules use it in their own way", None]
    assert type(model[0][0]) is nn.BatchNorm2d


def test_instance_norm_is_not_batch_norm() -> None:
    assert xt.convert(nn.InstanceNorm2d(C))[1] == []


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's, which need not be installed."""

    def __init__(self, channels: int, act: nn.Module, drop: nn.Module | None = None) -> None:
        super().__init__(channels)
        self.drop = drop or nn.Identity()
        self.act = act

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize(
    ("act", "drop", "fused"),
    [
        (nn.ReLU(inplace=True), None, "relu"),
        (nn.LeakyReLU(0.3), None, "leaky_relu"),
        (nn.SiLU(), None, "silu"),
        (nn.Identity(), None, None),
        (nn.Hardswish(), None, None),
        (nn.PReLU(C), None, None),
        (nn.ReLU(), nn.Hardtanh(-0.3, 0.3), None),
    ],
    ids=lambda p: type(p).__name__,
)
def test_timms_layer_keeps_its_children_and_fuses_its_activation(act: Any, drop: Any, fused: Any) -> None:
    theirs = nn.Sequential(nn.Conv2d(C, C, 1), BatchNormAct2d(C, act, drop)).double()
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert changes[0].converted and changes[0].fused == fused
    assert isinstance(ours[1], xt.BatchNorm2d) and isinstance(ours[1], BatchNormAct2d)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    same(pickle.loads(pickle.dumps(ours)), copy.deepcopy(theirs))
    many = xt.convert_sync(copy.deepcopy(ours))
    for again in (copy.deepcopy(many), pickle.loads(pickle.dumps(many))):
        assert type(again[1]) is type(many[1]) and isinstance(again[1], BatchNormAct2d)
        same(again, copy.deepcopy(theirs))
    assert type(xt.revert(xt.convert_sync(copy.deepcopy(ours)))[1]) is BatchNormAct2d
    same(ours, theirs)
    for model in (ours, theirs):
        model[1].act = nn.Tanh()
    same(ours, theirs)
    assert type(xt.revert(ours)[1]) is BatchNormAct2d and vars(ours[1]).keys() == vars(theirs[1]).keys()
    same(ours, theirs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"correction": 1}, "correction=1"),
        ({"running_correction": 0}, "running_correction=0"),
        ({"activation": "relu"}, "activation='relu'"),
        ({"nonfinite": "skip"}, "nonfinite='skip'"),
    ],
)
def test_options_that_torch_does_not_have_are_refused_before_anything_changes(
    options: Any, said: str
) -> None:
    model = nn.Sequential(blocks.sequence(), xt.BatchNorm2d(C, **options))
    xt.convert(model)
    before = repr(model)
    with pytest.raises(ArgumentError) as error:
        xt.revert(model)
    assert f"revert: 1 has {said}, which torch's layer can't express. Nothing was changed." in str(
        error.value
    )
    assert repr(model) == before


def test_a_frozen_layer_must_be_unfrozen_first() -> None:
    model = xt.freeze(xt.convert(blocks.sequence())[0])
    with pytest.raises(ArgumentError, match="1 has frozen statistics; 1 has frozen affine"):
        xt.revert(model)
    assert type(xt.revert(xt.unfreeze(model))[1]) is nn.BatchNorm2d


def test_a_subclass_of_xhats_layer_is_not_reverted() -> None:
    class Mine(xt.BatchNorm2d):
        pass

    with pytest.raises(ArgumentError, match=r"has the class .*Mine"):
        xt.revert(Mine(C))
