"""`convert_sync`: the layers of a model become SyncBatchNorm. In one process, where it computes what BatchNorm does."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from launching import environment
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import xhat.torch as xt
from xhat.errors import ArgumentError


class Wide(nn.BatchNorm1d):
    """A subclass of torch's with something of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=0.25)
        self.tag = "mine"

    def doubled(self) -> Tensor:
        return 2 * self.weight


class Scaled(xt.BatchNorm1d):
    """A subclass of ours with a forward."""

    def forward(self, input: Tensor, *more: Any, **options: Any) -> Tensor:
        return 3 * super().forward(input, *more, **options)


class Other(nn.BatchNorm1d):
    """A subclass of torch's with a forward, whose meaning is unknown."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4, eps=0.5, momentum=0.25),
        nn.ReLU(),
        nn.Flatten(),
        xt.BatchNorm1d(
            16, correction=1, running_correction=0, activation=("leaky_relu", 0.5), nonfinite="skip"
        ),
        Wide(16),
        Scaled(16),
        nn.SyncBatchNorm(16, affine=False),
    )


def test_every_batch_norm_becomes_one_on_many_processes_and_stays_the_same_layer() -> None:
    torch.manual_seed(0)
    before = model().eval()
    with torch.no_grad():
        for p in before.parameters():
            p.uniform_(0.5, 2)
    after = copy.deepcopy(before)
    layers, parameters, state = list(after), list(after.parameters()), copy.deepcopy(after.state_dict())
    handle = after[1].register_forward_hook(lambda *_: None)
    assert xt.convert_sync(after) is after
    assert list(after) == layers and all(p is q for p, q in zip(after.parameters(), parameters, strict=True))
    assert handle.id in after[1]._forward_hooks and not after[1].training
    assert state.keys() == after.state_dict().keys()
    assert [isinstance(m, xt.SyncBatchNorm) for m in after] == [
        False,
        True,
        False,
        False,
        True,
        True,
        True,
        True,
    ]
    assert type(after[1]) is type(after[4]) is type(after[7]) is xt.SyncBatchNorm
    assert (after[1].eps, after[1].momentum) == (0.5, 0.25)
    assert (after[4].correction, after[4].running_correction, after[4].nonfinite) == (1, 0, "skip")
    assert (
        isinstance(after[5], Wide)
        and after[5].tag == "mine"
        and torch.equal(after[5].doubled(), 2 * after[5].weight)
    )
    assert isinstance(after[6], Scaled)
    x = torch.randn(6, 2, 4, 4)
    assert torch.allclose(after(x), before(x), atol=1e-5)
    reference = before[:7].train()
    assert torch.allclose(after[:7].train()(x), reference(x), atol=1e-4)
    for p, q in zip(after[:7].buffers(), reference.buffers(), strict=True):
        assert torch.allclose(p.double(), q.double(), atol=1e-5)


def test_converted_layers_are_copied_and_pickled() -> None:
    net = xt.convert_sync(model())
    x = torch.randn(6, 2, 4, 4)
    for same in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert [type(m) for m in same] == [type(m) for m in net]
        assert same[5].tag == "mine" and torch.equal(same.eval()(x), net.eval()(x))
    lazy = xt.convert_sync(nn.Sequential(nn.LazyBatchNorm1d(eps=0.5)))
    same = pickle.loads(pickle.dumps(lazy))
    assert type(same[0]) is type(lazy[0])
    same(torch.randn(3, 5))
    assert type(same[0]) is xt.SyncBatchNorm and same[0].eps == 0.5


def test_what_was_made_for_many_processes_is_torchs_layer_again() -> None:
    """Of the class that each had; lazy ones of the class that they became."""
    net = nn.Sequential(
        nn.BatchNorm1d(4), nn.Unflatten(1, (4, 1, 1)), nn.BatchNorm2d(4), nn.Unflatten(2, (1, 1)), nn.BatchNorm3d(4),
        nn.Flatten(), Wide(4), nn.SyncBatchNorm(4), nn.LazyBatchNorm1d(), nn.LazyBatchNorm1d(),
    )  # fmt: skip
    x = torch.randn(6, 4)
    expected = nn.Sequential(*copy.deepcopy(net[:8]), nn.LazyBatchNorm1d(), nn.LazyBatchNorm1d())
    xt.convert_sync(net)
    net[:9].eval()(x), expected[:9].eval()(x)
    for same in (pickle.loads(pickle.dumps(net)), net):
        assert xt.revert(same) is same
        assert [type(m) for m in same] == [type(m) for m in expected]
        assert all(vars(a).keys() == vars(b).keys() for a, b in zip(same, expected, strict=True))
        torch.testing.assert_close(same[:9](x), expected[:9](x))
    with pytest.raises(ArgumentError, match="revert: 0 has the class SyncScaled"):
        xt.revert(xt.convert_sync(nn.Sequential(Scaled(4))))
    assert type(xt.revert(xt.convert_sync(xt.BatchNorm2d(4)))) is nn.BatchNorm2d
    assert type(xt.revert(xt.SyncBatchNorm(4))) is nn.SyncBatchNorm


def test_a_fused_model_for_many_processes_is_torchs_again() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.bn(x))

    block = xt.revert(xt.convert_sync(xt.convert(Block())[0]))
    assert type(block) is Block and type(block.bn) is nn.BatchNorm1d
    with pytest.raises(ArgumentError, match="revert: bn has frozen statistics"):
        xt.revert(xt.freeze(xt.convert_sync(block)))


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A process group of this process alone, which is not the default one."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", environment()["GLOO_SOCKET_IFNAME"])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.new_group()
    dist.destroy_process_group()


def test_torchs_layer_has_its_group_again(group: Any) -> None:
    net = xt.convert_sync(nn.Sequential(nn.SyncBatchNorm(5, process_group=group)))
    assert type(xt.revert(net)[0]) is nn.SyncBatchNorm and net[0].process_group is group


def test_a_group_that_is_given_replaces_torchs(group: Any) -> None:
    old, new = dist.new_group(), group
    net = xt.convert_sync(nn.Sequential(nn.SyncBatchNorm(5, process_group=old)), process_group=new)
    assert net[0].process_group is new and "process_group" not in vars(net[0])
    assert copy.deepcopy(net)[0].process_group is new


def test_a_layer_keeps_its_group_unless_another_is_given(group: Any) -> None:
    net = nn.Sequential(xt.SyncBatchNorm(5, process_group=group), nn.SyncBatchNorm(5, process_group=group))
    for _ in range(2):
        xt.convert_sync(net)
        assert net[0].process_group is net[1].process_group is group
    assert xt.convert_sync(net, dist.group.WORLD)[0].process_group is None  # all processes


def test_fused_calls_stay_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.bn(x))

    block, changes = xt.convert(Block())
    assert changes[0].fused == "relu"
    x = torch.randn(7, 5)
    expected = block(x)
    xt.convert_sync(block)
    calls = []
    normalized = xt.SyncBatchNorm._normalized

    def seen(self: xt.SyncBatchNorm, *arguments: Any) -> Any:
        calls.append(arguments[3])
        return normalized(self, *arguments)

    monkeypatch.setattr(xt.SyncBatchNorm, "_normalized", seen)
    assert torch.equal(block(x), expected) and isinstance(block.bn, xt.SyncBatchNorm)
    assert calls == ["relu"]


def test_a_lazy_layer_becomes_one_with_its_first_input() -> None:
    for lazy in (nn.LazyBatchNorm2d(eps=0.5), xt.LazyBatchNorm2d(eps=0.5, activation="relu")):
        activation = getattr(lazy, "activation", None)
        net = xt.convert_sync(nn.Sequential(lazy))
        y = net(torch.randn(3, 5, 2, 2))
        assert type(net[0]) is xt.SyncBatchNorm and net[0].eps == 0.5 and net[0].activation == activation
        assert net[0].weight.shape == (5,) and y.shape == (3, 5, 2, 2)


@pytest.mark.parametrize(
    "layer", [Other(5), weight_norm(nn.BatchNorm1d(5), dim=None)], ids=["forward", "parametrized"]
)
def test_what_cannot_be_converted_is_refused_and_nothing_is_changed(layer: nn.Module) -> None:
    net = nn.Sequential(nn.BatchNorm1d(5), layer)
    with pytest.raises(
        ArgumentError, match=r"convert_sync: a batch norm can't be converted \(1: .*Nothing was changed"
    ):
        xt.convert_sync(net)
    assert type(net[0]) is nn.BatchNorm1d


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"convert_sync: model is int, expected a torch.nn.Module"):
        xt.convert_sync(3)  # type: ignore[type-var]


def test_without_processes_the_layer_is_the_local_one() -> None:
    torch.manual_seed(0)
    one, many = xt.BatchNorm2d(5), xt.SyncBatchNorm(5)
    x = torch.randn(3, 5, 4, 2)
    assert torch.equal(one(x), many(x)) and torch.equal(one.running_var, many.running_var)
    assert one.state_dict().keys() == many.state_dict().keys() == nn.SyncBatchNorm(5).state_dict().keys()
    assert many.process_group is None and not isinstance(many, nn.SyncBatchNorm)
