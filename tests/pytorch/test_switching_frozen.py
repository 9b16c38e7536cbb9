"""A frozen layer stays frozen, whatever is done to the model around it. (What freezing is: test_freeze.)"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt


def data() -> Tensor:
    """A batch far from the statistics."""
    return torch.randn(6, 3, 5, 4, generator=generator("frozen"), dtype=torch.float64) * 3 + 2


def net(layer: Callable[..., nn.Module]) -> nn.Sequential:
    """A backbone whose layer has seen other batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Sequential(layer(4), nn.ReLU())).double()
    model(data() - 5)
    return model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("again", [False, True], ids=["once", "differentiable"])
@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.1)], ids=str)
def test_what_is_no_number_stays_where_it_is(activation: Any, again: bool, value: float) -> None:
    """Constant statistics tie no number to another, in the gradient as in y."""
    layer = xt.BatchNorm2d(3, activation=activation).double()
    layer(data())
    xt.freeze(layer, affine=False)
    x = data()
    clean = x.clone().requires_grad_()
    x[1, 2, 3, 1] = value
    spoilt = x.requires_grad_()
    y, expected = layer(spoilt), layer(clean)
    (found,) = torch.autograd.grad(y.sum(), spoilt, create_graph=again)
    (wanted,) = torch.autograd.grad(expected.sum(), clean)
    assert bool(found.isfinite().all())
    found[1, 2, 3, 1] = wanted[1, 2, 3, 1] = 0
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-12, atol=0)


def reloaded(model: nn.Module) -> nn.Module:
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    return model


def learning_again(model: nn.Module) -> nn.Module:
    """As fine-tuning scripts thaw a backbone, not knowing of frozen layers."""
    return model.train().requires_grad_(True)


TREATMENTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "train": lambda m: m.train(),
    "eval, train": lambda m: m.eval().train(),
    "requires_grad_": learning_again,
    "load_state_dict": reloaded,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "to": lambda m: m.float().double(),
    "apply": lambda m: m.apply(lambda part: part.train()),
    "wrapped": lambda m: nn.Sequential(m).train(),
    "named_modules": lambda m: [part.train() for part in m.modules()] and m,
    "converted again": lambda m: xt.convert(m)[0],
}


def step(model: nn.Module) -> None:
    """Of training, with everything that moves parameters."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        model(data()).square().sum().backward()
        optimizer.step()


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Which tensors are no longer what they were, by the last part of the name."""
    now = model.state_dict()
    assert len(now) == len(before)
    return {
        name
        for (name, value), old in zip(now.items(), before.values(), strict=True)
        if not torch.equal(value, old)
    }


@pytest.mark.parametrize("name", TREATMENTS)
def test_a_frozen_layer_stays_frozen(name: str) -> None:
    """Statistics, weight and bias; the convolution goes on learning."""
    model = TREATMENTS[name](xt.freeze(net(xt.BatchNorm2d)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step(model)
    assert len(moved(model, before)) == 2 and not {key for key in moved(model, before) if "1.0." in key}
    assert "frozen=statistics+affine" in repr(model)


def test_torchs_layer_thaws() -> None:
    """The trouble: what freezes it is undone by .train() and by requires_grad_, which every script calls."""
    model = net(nn.BatchNorm2d)
    model[1].eval().requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    step(learning_again(model))
    layers = {"running_mean", "running_var", "num_batches_tracked", "weight", "bias"}
    assert moved(model, before) >= {f"1.0.{key}" for key in layers}


def test_a_frozen_layer_takes_one_value_and_a_bad_batch() -> None:
    """Nothing is averaged, so that nothing can go wrong with an average."""
    layer = xt.freeze(xt.BatchNorm1d(3))
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    for x in (torch.randn(1, 3), torch.full((4, 3), torch.nan), torch.empty(0, 3)):
        assert layer(x).shape == x.shape
    assert not moved(layer, before)


@pytest.mark.parametrize("reentrant", [True, False])
def test_frozen_layers_in_checkpoints_and_compiled(reentrant: bool) -> None:
    model = xt.freeze(net(xt.BatchNorm2d))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x = data().requires_grad_()
    expected: Any = torch.autograd.grad(model(x).square().sum(), x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for run in (lambda x: checkpoint(model, x, use_reentrant=reentrant), compiled):
        leaf = data().requires_grad_()
        run(leaf).square().sum().backward()
        torch.testing.assert_close(leaf.grad, expected[0])
    assert not moved(model, before)
