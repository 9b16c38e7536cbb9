"""Frozen layers: they stay frozen, they say so, and an unfrozen one is what it was."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import xhat.torch as xt
from xhat.errors import ArgumentError

C = 3


def made(**options: object) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(C, C, 3), xt.BatchNorm2d(C, **options), nn.ReLU()).double()
    for p in model.parameters():
        nn.init.normal_(p, 0.5, 0.5)
    return model


def data() -> torch.Tensor:
    return torch.randn(4, C, 6, 5, generator=torch.Generator().manual_seed(1)).double() * 3 + 2


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)
    model(data()).square().sum().backward()
    optimizer.step()


def test_torchs_own_way_does_not_freeze() -> None:
    """What is wrong without: requires_grad leaves the statistics, and .train() takes .eval() back."""
    model = nn.Sequential(nn.BatchNorm2d(C)).double()
    model.requires_grad_(False).eval()
    before = state(model)
    model.train()(data())
    assert moved(model, before) == {"0.running_mean", "0.running_var", "0.num_batches_tracked"}


def test_nothing_moves_a_frozen_layer() -> None:
    model = xt.freeze(made())
    before = state(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for training in (True, False, True):
        step(model.train(training), optimizer)
    assert moved(model, before) == {"0.weight", "0.bias"}


def test_freezing_between_steps_stops_momentum_and_decay() -> None:
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(model, optimizer)
    model[0](data()), model(data()).sum().backward()
    xt.freeze(model, statistics=False)
    before = state(model)
    optimizer.step()
    assert moved(model, before) == {"0.weight", "0.bias"}


def test_frozen_statistics_normalize_in_training_as_in_evaluation() -> None:
    model = made()
    model(data())
    expected = copy.deepcopy(model).eval()(data())
    xt.freeze(model, affine=False).train()
    assert torch.equal(model(data()), expected)
    assert model[1].weight.requires_grad and "frozen=statistics)" in repr(model)


def test_frozen_parameters_are_constants_and_statistics_move() -> None:
    model = xt.freeze(made(), statistics=False)
    before = state(model)
    model(data()).sum().backward()
    assert model[1].weight.grad is None and model[0].weight.grad is not None
    assert moved(model, before) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert "frozen=affine)" in repr(model)


def test_unfreezing_gives_back_what_was() -> None:
    model = made()
    model[1].bias.requires_grad_(False)
    before = repr(model)
    xt.freeze(xt.freeze(model))
    assert "frozen=statistics+affine)" in repr(model)
    assert not model[1].weight.requires_grad
    xt.unfreeze(model)
    assert repr(model) == before
    assert model[1].weight.requires_grad and not model[1].bias.requires_grad
    start = state(model)
    model(data())
    assert "1.running_var" in moved(model, start)


@pytest.mark.parametrize("part", ["statistics", "affine"])
def test_a_part_is_left_as_it_is(part: str) -> None:
    other = {"statistics": "affine", "affine": "statistics"}[part]
    model = xt.unfreeze(xt.freeze(made()), **{part: False})
    assert getattr(model[1], f"frozen_{part}") and not getattr(model[1], f"frozen_{other}")


def test_one_layer_can_be_frozen_and_copies_stay_frozen() -> None:
    model = made()
    assert xt.freeze(model[1]) is model[1]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        before = state(twin)
        twin.train()(data())
        assert moved(twin, before) == set()
        assert xt.unfreeze(twin)[1].weight.requires_grad


def test_shared_parameters_come_back() -> None:
    model = nn.Sequential(xt.BatchNorm2d(C), xt.BatchNorm2d(C))
    model[1].weight = model[0].weight
    xt.unfreeze(xt.freeze(model))
    assert all(p.requires_grad for p in model.parameters())


class Doubled(nn.Module):
    """A parametrization: weight = 2 original + extra."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.ones(C).double())

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return 2 * original + self.extra

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return (weight - self.extra) / 2


def test_what_parameters_are_made_of_is_frozen_with_them() -> None:
    model = made()
    parametrize.register_parametrization(model[1], "weight", Doubled())
    model[1].parametrizations.weight[0].extra.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(model, optimizer)
    model(data()).sum().backward()
    xt.freeze(model, statistics=False)
    before = state(model[1])
    optimizer.step()
    assert moved(model[1], before) == set()
    xt.unfreeze(model)
    step(model, optimizer)
    assert moved(model[1], before) >= {"parametrizations.weight.original", "bias"}
    assert "parametrizations.weight.0.extra" not in moved(model[1], before)


def test_parameters_that_are_made_anew_while_frozen_learn_again() -> None:
    """Parametrized, taken out, replaced by what a checkpoint holds."""
    model = made()
    model[1].bias.requires_grad_(False)
    xt.freeze(model)
    for name in ("weight", "bias"):
        parametrize.register_parametrization(model[1], name, Doubled())
    xt.unfreeze(model)
    made_of = model[1].parametrizations
    assert made_of.weight.original.requires_grad and not made_of.bias.original.requires_grad
    xt.freeze(model)
    parametrize.remove_parametrizations(model[1], "weight")
    assert xt.unfreeze(model)[1].weight.requires_grad
    other = made()
    xt.freeze(other).load_state_dict(made().state_dict(), assign=True)
    other[1].register_parameter("bias", None)
    assert xt.unfreeze(other)[1].weight.requires_grad and other[1].bias is None


def test_children_of_a_layer_learn_on() -> None:
    """timm's layer has an activation inside, which may have parameters."""
    layer = xt.BatchNorm2d(C)
    layer.act = nn.PReLU()
    assert xt.freeze(layer).act.weight.requires_grad


def test_a_lazy_layer_and_one_without_parameters_can_be_frozen() -> None:
    lazy = xt.freeze(xt.LazyBatchNorm2d())
    lazy(data().float())
    assert type(lazy) is xt.BatchNorm2d and lazy.frozen_statistics and not lazy.weight.requires_grad
    assert torch.equal(lazy.running_mean, torch.zeros(C))
    assert xt.freeze(xt.BatchNorm2d(C, affine=False)).frozen_affine


def _mixed() -> nn.Module:
    model = made()
    model.append(nn.BatchNorm2d(C))
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            nn.Sequential(nn.BatchNorm2d(C)),
            "Sequential has no batch norm of xhat's. Call xhat.torch.convert(model)",
        ),
        (nn.Linear(2, 2), "Linear has no batch norm"),
        (_mixed(), "'3' would not be frozen: not xhat's. Call xhat.torch.convert(model) first"),
        (made(track_running_stats=False), "'1' has no running statistics (track_running_stats=False)"),
        (3, "model is int, expected a torch.nn.Module"),
    ],
)
def test_what_can_not_be_frozen_is_refused_and_stays(model: nn.Module, said: str) -> None:
    before = repr(model)
    with pytest.raises(ArgumentError) as error:
        xt.freeze(model)
    assert said in str(error.value) and repr(model) == before


def test_unfreezing_needs_a_layer_of_ours() -> None:
    with pytest.raises(ArgumentError, match="unfreeze: Linear has no batch norm of xhat's"):
        xt.unfreeze(nn.Linear(2, 2))


def test_parameters_alone_can_be_frozen_without_statistics() -> None:
    assert xt.freeze(made(track_running_stats=False), statistics=False)[1].frozen_affine
