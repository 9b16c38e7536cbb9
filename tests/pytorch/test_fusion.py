"""Fused calls: where they are made, where they must not be made, and that the results stay the same."""

import copy
import pickle
from typing import Any

import blocks
import pytest
import torch
import unfusable
from comparing import data, made, same
from torch import nn

import xhat.torch as xt
from xhat.torch.convert.fuse import Fused

FUSED = {
    blocks.ByModule: ["relu"],
    blocks.ByFunction: ["relu"],
    blocks.ByTorch: ["relu"],
    blocks.ByMethod: ["relu"],
    blocks.Leaky: ["leaky_relu", "leaky_relu"],
    blocks.Silu: ["silu", "silu"],
    blocks.Residual: ["relu", "add, relu"],
    blocks.Functional: ["relu", "add, relu"],
    blocks.Listing: ["relu"],
    blocks.ByPart: ["relu"],
    blocks.ByMode: ["relu"],
    blocks.CalledTwice: ["add, relu"],
    blocks.Broadcast: ["add, relu"],
    blocks.Promoted: ["add, relu"],
    blocks.Scaled: ["relu"],
    blocks.Own: ["relu"],
}
LEFT = {
    unfusable.Aliased: "used more than once",
    unfusable.UsedTwice: "used more than once",
    unfusable.Inside: "used more than once",
    unfusable.CalledBetween: "could change before the sum",
    unfusable.IntoShortcut: "",
    unfusable.Weighted: "",
    unfusable.ByShape: "line 3 of ByShape.forward decides by `x.shape[0] > 1`",
    unfusable.ByArgument: "decides by `plain`",
    unfusable.ByInstance: "decides by `isinstance(x, Tensor)`",
    unfusable.ByChance: "decides by `random.random() < 2`",
    unfusable.ByLoop: "for _ in range(2):",
    unfusable.SideEffect: "self.log.append(y.shape)",
    unfusable.Remembers: "changes `self.last`",
    unfusable.Noise: "calls `torch.rand`",
    unfusable.Swapped: "tensors that are no parameters",
    unfusable.WithoutGrad: "wrapped or replaced",
    unfusable.OtherActivation: "",
    unfusable.Overloaded: "calls `operator.add`",
}


def fused(changes: list[xt.Change]) -> list[str]:
    return [c.fused for c in changes if c.fused]


@pytest.mark.parametrize("kind", FUSED, ids=lambda k: k.__name__)
def test_a_call_is_fused_and_the_results_stay(kind: type[nn.Module]) -> None:
    theirs = made(kind)
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert fused(changes) == FUSED[kind]
    assert isinstance(ours, Fused) and isinstance(ours, kind)
    same(ours, theirs)


@pytest.mark.parametrize("kind", LEFT, ids=lambda k: k.__name__)
def test_what_guards_can_not_cover_is_not_fused_and_the_reason_is_given(kind: type[nn.Module]) -> None:
    theirs = made(kind)
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert fused(changes) == [] and type(ours) is kind
    said = changes[0].reason or ""
    assert LEFT[kind] in said and bool(said) == bool(LEFT[kind])
    same(ours, theirs)


class Counts:
    """Counts the separate calls of an activation: those that were not fused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        for space, name in ((torch.nn.functional, "relu"), (torch, "relu")):
            monkeypatch.setattr(space, name, self.counting(getattr(space, name)))

    def counting(self, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return function(*args, **kwargs)

        return counted


def calls(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    model = copy.deepcopy(model)
    with monkeypatch.context() as patch:
        count = Counts(patch)
        model(data())
    return count.calls


def test_no_activation_is_called_separately_after_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(blocks.Residual)
    assert calls(model, monkeypatch) == 2
    xt.convert(model)
    assert calls(model, monkeypatch) == 0


def _hook(model: Any) -> None:
    model.bn1.register_forward_hook(lambda *_: None)


def _hook_relu(model: Any) -> None:
    model.relu.register_forward_pre_hook(lambda *_: None)


def _replace(model: Any) -> None:
    model.relu = nn.GELU()


def _branch(model: Any) -> None:
    model.downsample = nn.Conv2d(blocks.C, blocks.C, 1).double()


def _options(model: Any) -> None:
    model.bn1.activation = "silu"


def _plain(model: Any) -> None:
    model.bn2.__class__ = nn.BatchNorm2d


@pytest.mark.parametrize("change", [_hook, _hook_relu, _replace, _branch, _plain])
def test_a_module_that_was_changed_later_falls_back_to_its_own_forward(
    change: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = made(blocks.Residual)
    ours, _ = xt.convert(copy.deepcopy(theirs))
    for model in (ours, theirs):
        torch.manual_seed(1)
        change(model)
    assert calls(ours, monkeypatch) == calls(theirs, monkeypatch)
    same(ours, theirs)


def test_a_layer_whose_input_changes_before_the_sum_is_not_moved_there() -> None:
    theirs = made(unfusable.InputChanges).eval()  # in training autograd would refuse the change
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert changes[0].fused is None and "could change before the sum" in str(changes[0].reason)
    with torch.no_grad():
        torch.testing.assert_close(ours(data()), theirs(data()))


def test_an_option_set_later_takes_effect() -> None:
    ours, _ = xt.convert(made(blocks.ByModule))
    ours.bn1.activation = "silu"
    expected = torch.relu(nn.functional.silu(made(blocks.ByModule).bn1(made(blocks.ByModule).conv1(data()))))
    torch.testing.assert_close(ours(data()), expected)


def test_hooks_get_the_same_tensors_as_before() -> None:
    theirs = made(blocks.Residual)
    ours = copy.deepcopy(theirs)
    seen: dict[str, list[torch.Tensor]] = {"ours": [], "theirs": []}
    for name, model in (("ours", ours), ("theirs", theirs)):
        model.bn1.register_forward_hook(lambda m, args, out, to=seen[name]: to.append(out.detach().clone()))
        model.relu.register_forward_pre_hook(
            lambda m, args, to=seen[name]: to.append(args[0].detach().clone())
        )
    _, changes = xt.convert(ours)
    assert changes[0].reason == "not fused: hooks look at what it gives"
    assert changes[1].fused is None
    same(ours, theirs)
    assert len(seen["ours"]) == len(seen["theirs"]) == 9
    for a, b in zip(seen["ours"], seen["theirs"], strict=True):
        torch.testing.assert_close(a, b)


def test_a_layer_called_alone_applies_no_activation() -> None:
    theirs = made(blocks.Residual)
    ours, _ = xt.convert(copy.deepcopy(theirs))
    torch.testing.assert_close(ours.bn1(data()), theirs.bn1(data()))
    assert ours.bn1(data()).min() < 0


def test_sequences_are_fused_and_can_be_cut_and_extended(monkeypatch: pytest.MonkeyPatch) -> None:
    def whole() -> nn.Sequential:
        torch.manual_seed(0)
        return blocks.sequence(blocks.sequence(), nn.Flatten()).double()

    theirs, ours = whole(), whole()
    changes = xt.convert(ours)[1]
    assert fused(changes) == ["relu", "relu"] and calls(ours, monkeypatch) == 0
    same(ours, theirs)
    same(ours[:2], theirs[:2])
    for model in (ours, theirs):
        model.insert(2, nn.Hardtanh(-0.5, 0.5))
    same(ours, theirs)
    same(nn.Sequential(*list(ours.children())[:3]), nn.Sequential(*list(theirs.children())[:3]))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_a_copy_is_fused_and_stands_alone(copied: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = made(blocks.Residual)
    ours, _ = xt.convert(copy.deepcopy(theirs))
    twin = copied(ours)
    assert type(twin) is type(ours) and calls(twin, monkeypatch) == 0
    twin.bn1.weight.data.zero_()
    same(copied(ours), copy.deepcopy(theirs))
    same(ours, theirs)


def test_repr_shows_what_is_fused() -> None:
    ours, _ = xt.convert(made(blocks.Residual))
    assert repr(ours).splitlines()[:2] == ["Residual(", "  fused: bn1 with relu; bn2 with add, relu"]


def test_training_and_evaluation_are_fused_separately(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = xt.convert(made(blocks.ByMode))
    for training in (True, False):
        assert calls(ours.train(training), monkeypatch) == 0


def test_layers_that_are_ours_already_are_fused_too() -> None:
    model = made(blocks.Residual)
    model.bn1 = xt.BatchNorm2d(blocks.C).double()
    _, changes = xt.convert(model)
    assert [(c.converted, c.fused) for c in changes] == [(False, "relu"), (True, "add, relu")]
    again = xt.convert(model)[1]
    assert not any(c.converted for c in again)


def test_identity_modules_are_skipped_in_a_match() -> None:
    class WithIdentities(blocks.Block):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Identity()

        def forward(self, x):
            y = self.drop(self.bn1(self.conv1(x)))
            y = self.relu(y)
            return self.relu(self.drop(self.bn2(self.conv2(y)) + x))

    theirs = made(WithIdentities)
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert fused(changes) == ["relu", "add, relu"]
    same(ours, theirs)
    for model in (ours, theirs):
        model.drop = nn.Hardtanh(-0.5, 0.5)
    same(ours, theirs)


def test_a_name_of_an_enclosing_function_is_not_taken_for_a_global() -> None:
    torch = nn.functional  # not the module of this name

    class Inner(blocks.Block):
        def forward(self, x):
            return torch.relu(self.bn1(self.conv1(x)))

    changes = xt.convert(Inner())[1]
    assert changes[0].fused is None and "names from a function around" in str(changes[0].reason)


def test_a_method_that_rebinds_self_is_not_fused() -> None:
    class Renames(blocks.Block):
        def forward(self, x):
            y = nn.functional.relu(self.bn1(self.conv1(x)))
            self = y
            return self.square()

    changes = xt.convert(Renames())[1]
    assert changes[0].fused is None and "changes `self`" in str(changes[0].reason)


def test_the_training_mode_is_restored_after_tracing() -> None:
    for training in (True, False):
        model = made(unfusable.ByShape).train(training)
        xt.convert(model)
        assert [m.training for m in model.modules()] == [training] * len(list(model.modules()))
