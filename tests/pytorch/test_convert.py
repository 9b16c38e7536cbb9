"""convert and revert: what changes, and what stays the same object."""

import copy
import gc
import io
import linecache
import pickle
import weakref
from typing import Any

import blocks
import pytest
import torch
from comparing import data, made, same
from definition import NO_BIAS
from torch import nn

import xhat.torch as xt
from xhat.errors import ArgumentError

C = blocks.C
PAIRS = [
    (nn.BatchNorm1d, xt.BatchNorm1d, (4, C, 5)),
    (nn.BatchNorm2d, xt.BatchNorm2d, (4, C, 5, 6)),
    (nn.BatchNorm3d, xt.BatchNorm3d, (4, C, 2, 3, 4)),
]
LAZY = [
    (nn.LazyBatchNorm1d, xt.LazyBatchNorm1d, xt.BatchNorm1d, (4, C, 5)),
    (nn.LazyBatchNorm2d, xt.LazyBatchNorm2d, xt.BatchNorm2d, (4, C, 5, 6)),
    (nn.LazyBatchNorm3d, xt.LazyBatchNorm3d, xt.BatchNorm3d, (4, C, 2, 3, 4)),
]


@pytest.mark.parametrize(("theirs", "ours", "shape"), PAIRS)
def test_a_layer_becomes_ours_and_torchs_again(theirs: type, ours: type, shape: tuple[int, ...]) -> None:
    for options in (
        {},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        NO_BIAS,
    ):
        layer = theirs(C, eps=1e-3, **options).double()
        expected = copy.deepcopy(layer)
        found, changes = xt.convert(layer)
        assert found is layer and type(layer) is ours
        assert [str(c) for c in changes] == [
            f"(the model): torch.nn.{theirs.__name__} -> xhat.torch.{theirs.__name__}"
        ]
        assert layer.state_dict().keys() == expected.state_dict().keys()
        same(layer, expected, data(*shape))
        assert xt.revert(layer) is layer and type(layer) is theirs
        assert (
            vars(layer).keys() == vars(expected).keys() and layer._buffers.keys() == expected._buffers.keys()
        )
        same(layer, expected, data(*shape))


@pytest.mark.parametrize(("theirs", "ours", "becomes", "shape"), LAZY)
def test_a_lazy_layer_stays_lazy(theirs: type, ours: type, becomes: type, shape: tuple[int, ...]) -> None:
    layer, twin, expected = theirs().double(), theirs().double(), theirs().double()
    xt.convert(layer)
    xt.revert(xt.convert(twin)[0])
    assert type(layer) is ours and type(twin) is theirs
    for made_of in (layer, twin):
        made_of(data(*shape))
    expected(data(*shape))
    assert type(layer) is becomes and type(twin) is type(expected)
    same(layer, copy.deepcopy(expected), data(*shape))
    same(twin, expected, data(*shape))


def test_a_lazy_model_is_fused_before_its_first_input() -> None:
    model, expected = (nn.Sequential(nn.Identity(), nn.LazyBatchNorm2d(), nn.ReLU()).double() for _ in "ab")
    assert xt.convert(model)[1][0].fused == "relu"
    model(data()), expected(data())
    same(model, expected)


class Kept(nn.Module):
    """A model with everything that a conversion must keep: shared layers, shared parameters, containers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3)
        self.first = nn.BatchNorm2d(C)
        self.again = self.first
        self.many = nn.ModuleList([nn.BatchNorm2d(C), nn.ModuleDict({"key": nn.BatchNorm2d(C)})])
        self.many[0].weight = self.first.weight
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.again(self.relu(self.first(self.conv(x))))
        for layer in (self.many[0], self.many[1]["key"]):
            y = layer(y)
        return y


def test_objects_stay_the_same() -> None:
    model = made(Kept)
    model.first.eval()
    model.many[0].requires_grad_(False)
    model.first.note = {"mine": 1}
    modules, tensors = (
        dict(model.named_modules()),
        {**dict(model.named_parameters()), **dict(model.named_buffers())},
    )
    order, modes = list(model.state_dict()), [m.training for m in model.modules()]
    flags = [p.requires_grad for p in model.parameters()]
    for change in (lambda: xt.convert(model)[0], lambda: xt.revert(model)):
        assert change() is model
        assert all(modules[name] is m for name, m in model.named_modules())
        now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert now.keys() == tensors.keys() and all(tensors[name] is t for name, t in now.items())
        assert list(model.state_dict()) == order and [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == flags
        assert model.first is model.again and model.many[0].weight is model.first.weight
        assert model.first.note == {"mine": 1}


def test_a_layer_at_two_places_is_one_change() -> None:
    theirs = made(Kept)
    ours = copy.deepcopy(theirs)
    changes = xt.convert(ours)[1]
    assert [str(c).split(":")[0] for c in changes] == ["first = again", "many.0", "many.1.key"]
    same(ours, theirs)


def test_an_optimizer_keeps_working() -> None:
    theirs = made(blocks.Residual)
    ours = copy.deepcopy(theirs)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (ours, theirs)]
    for i in range(6):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            model(data(seed=i)).cos().sum().backward()
            optimizer.step()
        if i == 1:
            xt.convert(ours)
        if i == 4:
            xt.revert(ours)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_hooks_of_every_kind_stay_and_run() -> None:
    layer = nn.BatchNorm2d(C)
    ran = []
    layer.register_forward_pre_hook(lambda m, args, kwargs: ran.append("pre"), with_kwargs=True)
    layer.register_forward_hook(
        lambda m, args, kwargs, out: ran.append("forward"), with_kwargs=True, always_call=True
    )
    layer.register_full_backward_pre_hook(lambda m, dy: ran.append("backward pre"))
    layer.register_full_backward_hook(lambda m, dx, dy: ran.append("backward"))
    layer.register_state_dict_pre_hook(lambda *_: ran.append("state pre"))
    layer.register_load_state_dict_post_hook(lambda *_: ran.append("load"))
    xt.convert(layer)
    layer(torch.randn(4, C, 2, 2, requires_grad=True)).sum().backward()
    layer.load_state_dict(layer.state_dict())
    assert ran == ["pre", "forward", "backward pre", "backward", "state pre", "load"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_statistics_become_wide_and_their_tensors_stay(dtype: torch.dtype) -> None:
    layer = nn.BatchNorm2d(C).to(dtype)
    layer.running_var.uniform_(0.5, 2)
    held, numbers, torchs = layer.running_var, layer.running_var.clone(), copy.deepcopy(layer).eval()
    xt.convert(layer)
    assert layer.running_var is held and held.dtype == torch.float32
    assert torch.equal(held, numbers.float()) and layer.weight.dtype == dtype
    x = torch.randn(8, C, 4, 4).to(dtype)
    assert layer.eval()(x).dtype == dtype
    xt.revert(layer)
    assert layer.running_var is held and torch.equal(held, numbers) and held.dtype == dtype
    assert torch.equal(layer(x), torchs(x))


def test_a_model_on_the_meta_device_is_converted_there() -> None:
    with torch.device("meta"):
        model = blocks.Residual().to(torch.bfloat16)
    changes = xt.convert(model)[1]
    assert [c.fused for c in changes] == ["relu", "add, relu"]
    assert model.bn1.running_mean.is_meta and model.bn1.running_mean.dtype == torch.float32
    assert model(torch.empty(2, C, 4, 4, device="meta", dtype=torch.bfloat16)).shape == (2, C, 4, 4)
    assert type(xt.revert(model)) is blocks.Residual


@pytest.mark.parametrize("function", [xt.convert, xt.revert])
def test_only_modules_are_taken(function: Any) -> None:
    with pytest.raises(ArgumentError, match=r"model is type, expected a torch\.nn\.Module"):
        function(nn.BatchNorm2d)


def test_checkpoints_load_in_both_directions() -> None:
    theirs = made(blocks.Residual, 1)
    theirs(data())
    ours, _ = xt.convert(made(blocks.Residual, 2))
    ours.load_state_dict(theirs.state_dict())
    same(copy.deepcopy(ours), copy.deepcopy(theirs))
    back = made(blocks.Residual, 3)
    back.load_state_dict(ours.state_dict())
    same(ours, back)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m, 0)),
        lambda m: (torch.save(m, b := io.BytesIO()), b.seek(0), torch.load(b, weights_only=False))[2],
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
def test_copies_of_a_converted_model_are_converted(copied: Any) -> None:
    theirs = made(blocks.Residual)
    ours = copied(xt.convert(copy.deepcopy(theirs))[0])
    same(ours, theirs)
    assert type(xt.revert(ours)) is blocks.Residual


def test_the_model_inside_a_wrapper_is_converted() -> None:
    theirs = made(blocks.Residual)
    wrapped, changes = xt.convert(nn.DataParallel(copy.deepcopy(theirs)))
    assert [c.path for c in changes] == ["module.bn1", "module.bn2"] and all(c.fused for c in changes)
    same(wrapped, theirs)


def test_a_graph_module_is_converted_and_the_reason_why_it_is_not_fused_is_given() -> None:
    theirs = torch.fx.symbolic_trace(made(blocks.Functional))
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert [c.reason for c in changes] == ["not fused: a GraphModule writes its own forward"] * 2
    same(ours, copy.deepcopy(theirs))
    fused, again = xt.convert(made(blocks.Functional))
    assert all(c.fused for c in again)
    same(torch.fx.symbolic_trace(fused), theirs)


def test_a_fused_class_and_its_source_are_deleted_with_the_last_module() -> None:
    def sources() -> int:
        gc.collect(), gc.collect()  # first the fused class, then the original class
        return sum("fused by xhat" in file for file in linecache.cache)

    class Passing(blocks.ByModule):
        pass

    before = sources()
    original = weakref.ref(Passing)
    model, _ = xt.convert(Passing())
    twin = copy.deepcopy(model)
    made = weakref.ref(type(model))
    assert sources() == before + 1
    del model
    assert sources() == before + 1 and made() is type(twin)
    del twin, Passing
    assert sources() == before and made() is None and original() is None
