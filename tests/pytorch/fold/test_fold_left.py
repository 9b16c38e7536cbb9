"""What can't be folded is left, with the reason, and the model computes the same numbers bit for bit."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from left import LEFT
from models import OneUse, evaluated, norms_in, numbers
from torch import Tensor, nn

import xhat.torch as xt


def y_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(torch.utils._pytree.tree_leaves(model(x)))


@pytest.mark.parametrize(("model", "reason"), LEFT.values(), ids=LEFT)
def test_it_is_left_with_the_reason(model: nn.Module, reason: str) -> None:
    x = numbers("left", 3, 3, 9, 7)
    folded, changes = xt.fold(evaluated(model), x)
    assert [c.folded for c in changes] == [False]
    assert reason in str(changes[0].reason)
    assert str(changes[0]).endswith(f"left as it is ({changes[0].reason})")
    assert norms_in(folded) == norms_in(model)
    for a, b in zip(y_of(model, x), y_of(folded, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_the_same_model_without_the_reason_is_folded() -> None:
    model = OneUse()
    assert xt.fold(evaluated(model), numbers("left", 3, 3, 9, 7))[1][0].into == ("conv",)


def test_a_layer_in_training_mode_is_left() -> None:
    model = evaluated(OneUse()).train()
    before = copy.deepcopy(model.state_dict())
    folded, (change,) = xt.fold(model, numbers("left", 3, 3, 9, 7))
    assert change.reason == (
        "it is in training mode, where it normalizes by each batch's statistics: call model.eval() first"
    )
    for found in (model.state_dict(), folded.state_dict()):  # the runs of the verification have moved nothing
        assert all(torch.equal(found[name], value) for name, value in before.items())


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_numbers_that_are_not_finite_are_left(name: str, value: float) -> None:
    model = evaluated(OneUse())
    with torch.no_grad():
        getattr(model.bn, name)[2] = value
    _, (change,) = xt.fold(model, numbers("left", 3, 3, 9, 7))
    if (name, value) == ("running_var", float("inf")):  # gamma rstd = 0: the channel is constant
        assert change.folded
    else:
        assert change.reason == "its parameters and statistics give NaN or infinity"


class Dropped(nn.Module):
    """Dropout that is in training mode in evaluation, for many samples of one input."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.kind = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), kind

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.kind(self.conv(x)))


@pytest.mark.parametrize(
    "kind",
    [
        nn.Dropout(0.3),
        nn.Dropout2d(0.3),
        lambda y: F.dropout(y, 0.3, True),
        lambda y: F.dropout2d(y, 0.3),
        lambda y: F.alpha_dropout(y, 0.3, True),
    ],
)
def test_dropout_that_drops_is_not_passed(kind: Any) -> None:
    model = evaluated(Dropped(kind))
    if isinstance(kind, nn.Module):
        kind.train()
    _, (change,) = xt.fold(model, numbers("left", 3, 3, 9, 7))
    assert not change.folded and "its input is the output of" in str(change.reason)


class Elsewhere(OneUse):
    def __init__(self) -> None:
        super().__init__()
        self.list = [self.bn]

    def forward(self, x: Tensor) -> Tensor:
        return self.list[0](self.conv(x))


def test_a_layer_that_is_called_from_outside_of_the_modules_is_found_out() -> None:
    """The graph has its path, but what is at that path is not what is called."""
    model = evaluated(Elsewhere())
    folded, (change,) = xt.fold(model, x := numbers("left", 3, 3, 9, 7))
    assert change.reason == "folded into conv and undone: the model does not call the layer as a module"
    assert torch.equal(folded(x), model(x))
