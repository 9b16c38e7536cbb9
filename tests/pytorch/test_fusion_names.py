"""Guards on names: the module that a name refers to at the time of the call is the one that runs."""

import copy
from typing import Any

import pytest
import torch
from blocks import Block, C
from comparing import data, made, same
from test_fusion import calls, fused
from torch import nn

import xhat.torch as xt


class ByProperty(Block):
    """A property decides which layer is called; its source is not analyzed."""

    @property
    def norm(self):
        return self.bn1 if self.scale >= 1 else self.bn2

    def forward(self, x):
        return self.relu(self.norm(self.conv1(x)))


class TwoNames(Block):
    """Every child has a second name, and is called by that."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.shortcut = self.bn1, self.relu, self.bn2
        self.gain = self.weight = nn.Parameter(torch.ones(C, 1, 1))

    def forward(self, x):
        y = self.act(self.norm(self.conv1(x)))
        return self.act(self.shortcut(self.conv2(y)) + x) * self.weight


class Kept(Block):
    """Calls a layer in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = [self.bn1]

    def forward(self, x):
        return self.relu(self.kept[0](self.conv1(x)))


class Listed(Block):
    """Calls a layer in a ModuleList."""

    def __init__(self) -> None:
        super().__init__()
        self.bns = nn.ModuleList([nn.BatchNorm2d(C), nn.BatchNorm2d(C)])

    def forward(self, x):
        return self.relu(self.bns[1](self.conv1(x)))


class Chain(nn.Sequential):
    """One activation module at two positions."""

    def __init__(self) -> None:
        act = nn.ReLU()
        super().__init__(
            nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), act, nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), act
        )


class Scaled(Block):
    """A parameter that a property chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.ones(C, 1, 1)) for _ in "ab")

    @property
    def gain(self):
        return self.a if self.scale >= 1 else self.b

    def forward(self, x):
        return self.relu(self.bn1(self.conv1(x))) * self.gain


def _scale(model: Any) -> None:
    model.scale = 0.5


def _remove(model: Any) -> None:
    model.scale = 0.5
    del model.bn1


def _new(name: str) -> Any:
    def change(model: Any) -> None:
        setattr(model, name, nn.Hardswish() if "act" in name else nn.BatchNorm2d(C).double())

    return change


def _untie(model: Any) -> None:
    model.weight = nn.Parameter(torch.full((C, 1, 1), 2.0).double())


def _keep_another(model: Any) -> None:
    model.kept[0] = model.bn2


def _insert(model: Any) -> None:
    model.bns.insert(1, nn.BatchNorm2d(C).double())


def _last(model: Any) -> None:
    model[5] = nn.Hardswish()


CHANGES = [
    (ByProperty, _scale), (ByProperty, _remove), (TwoNames, _new("norm")), (TwoNames, _new("bn1")),
    (TwoNames, _new("act")), (TwoNames, _new("shortcut")), (TwoNames, _untie), (Kept, _keep_another),
    (Listed, _insert), (Chain, _last), (Scaled, _scale),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_a_name_that_refers_to_another_module_later_is_followed(kind: type[nn.Module], change: Any) -> None:
    theirs = made(kind)
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert fused(changes)
    same(ours, theirs)
    for model in (ours, theirs):
        torch.manual_seed(1)
        change(model)
    same(ours, theirs)


@pytest.mark.parametrize("kind", dict.fromkeys(kind for kind, _ in CHANGES))
def test_calls_by_second_names_are_fused(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = xt.convert(made(kind))
    assert calls(model, monkeypatch) == 0


class Parent(Block):
    def forward(self, x):
        return self.relu(self.bn1(self.conv1(x)))


class Child(Parent):
    """Inherits what is patched."""


def _twice(self: Any, x: torch.Tensor) -> torch.Tensor:
    return 2 * self.relu(self.bn1(self.conv1(x)))


@pytest.mark.parametrize("patched", [Parent, nn.ReLU])
@pytest.mark.parametrize("kind", [Parent, Child])
def test_a_forward_that_is_patched_later_is_run(
    kind: type[nn.Module], patched: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the module's own class, of a class that it inherits from, and of an activation's class."""
    theirs = made(kind)
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert fused(changes) == ["relu"]
    compiled = torch.compile(copy.deepcopy(ours), fullgraph=True, backend="aot_eager")
    same(compiled, copy.deepcopy(theirs))
    with monkeypatch.context() as patch:
        patch.setattr(patched, "forward", _twice if patched is Parent else lambda self, x: x.clamp(min=-0.5))
        assert calls(ours, patch) == calls(theirs, patch)
        same(copy.deepcopy(ours), copy.deepcopy(theirs))
        changed = theirs(data())
    assert calls(ours, monkeypatch) == 0
    assert not torch.allclose(theirs(data()), changed)
    same(ours, made(kind))
    torch._dynamo.reset()


def test_a_layer_whose_class_is_patched_before_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Parent)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: x)
    changes = xt.convert(model)[1]
    assert type(model.bn1) is nn.BatchNorm2d
    assert changes[0].reason == "the forward of torch's class was replaced"


@pytest.mark.parametrize("kind", [TwoNames, Listed, Chain])
def test_guards_on_names_do_not_break_a_compiled_graph(kind: type[nn.Module]) -> None:
    theirs = made(kind)
    ours, _ = xt.convert(copy.deepcopy(theirs))
    same(torch.compile(ours, fullgraph=True, backend="aot_eager"), theirs)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.nn.BatchNorm2d(C), "takes `self.log[0]`, which is no child"),
        (torch.tensor(2.0), "takes `self.log[0]`, of tensors that are no parameters"),
    ],
)
def test_what_is_not_registered_is_not_traced(value: Any, said: str) -> None:
    class Nameless(Block):
        def forward(self, x):
            if self.scale >= 1:
                return self.relu(self.bn1(self.conv1(x))) * self.log[0].T
            return self.relu(self.log[0](self.conv1(x)))

    model = Nameless()
    model.log = [value]
    model.scale = 0.5 if isinstance(value, nn.Module) else 1.5
    assert said in str(xt.convert(model)[1][0].reason)


def test_the_results_differ_if_a_name_is_not_followed() -> None:
    """If both branches gave the same result, the tests above would show nothing."""
    model = made(ByProperty)
    before = model(data())
    _scale(model)
    assert not torch.allclose(before, model(data()))
