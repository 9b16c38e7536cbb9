"""Buffers that change between a forward and its backward pass, and gradients with respect to them in evaluation."""

import sys
from typing import Any

import pytest
import torch
from definition import ACTIVATIONS, Problem, definition, generator
from launching import RANKS, failures, world
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import xhat.torch as xt
from xhat.errors import ArgumentError

sys.path.insert(0, str(RANKS))
import two_forwards  # its claims, which the ranks check


@pytest.mark.parametrize("claim", two_forwards.claim.names)
def test_two_forwards_before_a_backward_on_two_ranks(claim: str) -> None:
    assert not failures(world("two_forwards.py", 2), claim)


@pytest.mark.parametrize("name", ["running_mean", "running_var", "num_batches_tracked"])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_statistics_of_inference_mode_do_not_move_outside_of_it(name: str, nonfinite: str) -> None:
    layer = xt.BatchNorm2d(3, nonfinite=nonfinite).double()
    with torch.inference_mode():
        setattr(layer, name, getattr(layer, name).clone())
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    with pytest.raises(ArgumentError, match="made in inference mode, and can't move outside of it"):
        layer(data())
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    with torch.inference_mode():
        layer(data())
    assert layer.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_one_statistic_without_the_other_is_an_error_where_it_is_torchs(
    name: str, training: bool, track: bool
) -> None:
    for kind in (xt.BatchNorm2d, nn.BatchNorm2d):
        made = kind(3).double().train(training)
        setattr(made, name, None)
        made.track_running_stats = track
        if training and not track:
            assert torch.allclose(made(data()), nn.BatchNorm2d(3).double()(data()))
            continue
        with pytest.raises(ValueError if training else RuntimeError) as error:
            made(data())
        if kind is xt.BatchNorm2d:
            assert isinstance(error.value, ArgumentError)
            said = "one of running_mean and running_var is None, expected both or neither."
            assert str(error.value) == f"BatchNorm2d: batch_norm: {said}"
            assert made.num_batches_tracked == 0


# --------------------------------------------------------------------------------------------- the same by hand


def data() -> Tensor:
    """A batch."""
    return torch.randn(6, 3, 5, 4, generator=generator("buffers"), dtype=torch.float64)


def layer(kind: Any, training: bool, **options: Any) -> nn.Module:
    """A layer with statistics of its own."""
    made: nn.Module = kind(3, **options).double().train()
    made(data() * 2 + 1)
    return made.train(training)


class Unknown(Tensor):
    """A tensor whose numbers the kernels don't look for: as on another device, torch's operations run."""


def gradients(made: nn.Module, change: bool, kind: type[Tensor] = Tensor) -> list[Tensor]:
    """Of x and the parameters, where every buffer changes between the forward and the backward pass, or none."""
    x = data().requires_grad_()
    loss = made(x.as_subclass(kind)).square().sum()
    for buffer in made.buffers():
        if change:
            buffer.mul_(3).add_(1)
    loss.backward()
    return [t.grad for t in (x, *made.parameters()) if t.grad is not None]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("kind", [Tensor, Unknown])
def test_a_backward_pass_needs_no_buffer(kind: type[Tensor], training: bool, activation: Any) -> None:
    """The gradients are those of the statistics that the forward used."""
    kept, changed = (
        gradients(layer(xt.BatchNorm2d, training, activation=activation), change, kind)
        for change in (False, True)
    )
    assert len(kept) == 3
    assert all(torch.equal(a, b) for a, b in zip(kept, changed, strict=True))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_torchs_backward_pass_needs_them(training: bool) -> None:
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        gradients(layer(nn.BatchNorm2d, training), change=True)


def test_a_frozen_layers_statistics_may_change_too() -> None:
    kept, changed = (
        gradients(xt.freeze(layer(xt.BatchNorm2d, True), affine=False), change) for change in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(kept, changed, strict=True))


# ------------------------------------------------------------------- gradients with respect to running statistics


def running() -> list[Tensor]:
    """x, mean, var, weight, bias that ask for gradients."""
    g = generator("running")
    mean, weight, bias = torch.randn(3, 3, generator=g, dtype=torch.float64)
    var = 0.5 + torch.rand(3, generator=g, dtype=torch.float64)
    return [t.requires_grad_() for t in (data()[:2, :, :2], mean, var, weight, bias)]


@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients_of_the_running_statistics(activation: Any, residual: bool) -> None:
    """Against the definition, and against finite differences to the second order."""
    leaves = running()
    shortcut = (
        torch.randn(leaves[0].shape, generator=generator("shortcut"), dtype=torch.float64)
        if residual
        else None
    )

    def run(*tensors: Tensor) -> Tensor:
        return xt.batch_norm(*tensors, residual=shortcut, activation=activation)

    x, mean, var, weight, bias = leaves
    expected = definition(Problem(x, weight, bias, shortcut), (mean, var), activation=activation).y
    dy = torch.randn(x.shape, generator=generator("dy"), dtype=torch.float64)
    found = torch.autograd.grad(run(*leaves), leaves, dy)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves, dy))
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


def test_torch_has_none() -> None:
    """The trouble, for whoever adapts statistics at test time."""
    x, mean, var, *_ = running()
    with pytest.raises(RuntimeError, match="is not differentiable with respect to argument 'running_mean'"):
        nn.functional.batch_norm(x, mean, var)


def test_a_layer_learns_its_statistics_at_test_time() -> None:
    """As parameters of a model whose inputs have moved: gradient descent brings y back to mean 0 and variance 1."""
    made = layer(xt.BatchNorm2d, False, affine=False)
    for name in ("running_mean", "running_var"):
        value = getattr(made, name)
        delattr(made, name)
        made.register_parameter(name, nn.Parameter(value))
    x = data() * 3 - 2
    optimizer = torch.optim.LBFGS(made.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        y = made(x)
        found = y.mean((0, 2, 3)).square().sum() + (y.var((0, 2, 3)) - 1).square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    torch.testing.assert_close(made.running_mean.detach(), x.mean((0, 2, 3)), rtol=0, atol=1e-3)
    torch.testing.assert_close(made.running_var.detach(), x.var((0, 2, 3)), rtol=1e-3, atol=0)


def test_statistics_that_are_learned_do_not_follow_batches() -> None:
    """In training they would be changed in place: refused, as torch does, and nothing changes."""
    x, mean, var, *_ = running()
    before = mean.detach().clone(), var.detach().clone()
    with pytest.raises(RuntimeError):
        nn.functional.batch_norm(x, mean, var, training=True)
    with pytest.raises(RuntimeError, match="running_mean or running_var requires a gradient") as raised:
        xt.batch_norm(x, mean, var, training=True)
    assert isinstance(raised.value, ArgumentError)
    assert torch.equal(mean, before[0]) and torch.equal(var, before[1])
    with torch.no_grad():
        xt.batch_norm(x, mean, var, training=True)
    assert not torch.equal(mean, before[0])
