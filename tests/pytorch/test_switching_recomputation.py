"""Forward passes that are repeated: activation checkpointing computes one batch twice, and counts it once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt

WAYS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])


def data(n: int = 1) -> list[Tensor]:
    """Batches."""
    g = generator("recomputation")
    return [torch.randn(6, 3, 5, 4, generator=g, dtype=torch.float64) + 1 for _ in range(n)]


def net(layer: Callable[..., nn.Module] = xt.BatchNorm2d, **options: Any) -> nn.Sequential:
    """A convolution, the layer, and something that needs the layer's result again."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2), layer(4, **options), nn.SiLU()).double()


def step(model: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """One forward and backward pass; returns dx."""
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    run(leaf).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def state(model: nn.Module) -> dict[str, Tensor]:
    """What a training changes, counts of skipped batches included."""
    return {
        **dict(model.named_buffers()),
        **{n: p.grad for n, p in model.named_parameters() if p.grad is not None},
    }


def counted(model: nn.Module) -> list[int]:
    """How many batches each layer has counted."""
    return [int(t) for name, t in model.named_buffers() if name.endswith("num_batches_tracked")]


OPTIONS: list[dict[str, Any]] = [
    {}, {"momentum": None}, {"nonfinite": "skip"}, {"nonfinite": "skip", "momentum": None}, {"nonfinite": "raise"},
    {"activation": "relu", "correction": 1},
]  # fmt: skip


@WAYS
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_recomputed_batch_counts_once(options: dict[str, Any], reentrant: bool) -> None:
    """Bit by bit the training without checkpoints: gradients, statistics and counts, over three steps."""
    plain, recomputed = net(**options), net(**options)
    for x in data(3):
        dx = step(plain, plain, x)
        assert torch.equal(
            step(recomputed, lambda x: checkpoint(recomputed, x, use_reentrant=reentrant), x), dx
        )
    expected = state(plain)
    assert counted(recomputed) == [3]
    for name, value in state(recomputed).items():
        assert torch.equal(value, expected[name]), name


@WAYS
def test_torch_counts_a_recomputed_batch_twice(reentrant: bool) -> None:
    """The trouble: the running variance has gone twice as far towards the batch."""
    (x,) = data()
    plain, recomputed = net(nn.BatchNorm2d), net(nn.BatchNorm2d)
    step(plain, plain, x)
    step(recomputed, lambda x: checkpoint(recomputed, x, use_reentrant=reentrant), x)
    assert counted(recomputed) == [2]
    once, twice = plain[1].running_var - 1, recomputed[1].running_var - 1
    torch.testing.assert_close(twice, 1.9 * once)  # 1 - 0.9^2 over 1 - 0.9


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_checkpoints_within_checkpoints(outer: bool, inner: bool) -> None:
    (x,) = data()

    def train(model: nn.Module) -> list[int]:
        within = lambda x: checkpoint(model, x, use_reentrant=inner)  # noqa: E731
        step(model, lambda x: checkpoint(within, x, use_reentrant=outer), x)
        return counted(model)

    assert train(net()) == [1]
    assert train(net(nn.BatchNorm2d))[0] >= 2


@WAYS
def test_a_layer_in_two_places(reentrant: bool) -> None:
    """A layer that is called twice has two batches, also when each of them is computed twice."""
    layer = xt.BatchNorm2d(3).double()
    (x,) = data()
    part = lambda x: checkpoint(lambda x: layer(x).sin(), x, use_reentrant=reentrant)  # noqa: E731
    step(layer, lambda x: part(part(x)), x)
    assert counted(layer) == [2]


@WAYS
@pytest.mark.parametrize("where", ["inside", "outside"])
def test_with_a_compiler(where: str, reentrant: bool) -> None:
    """Checkpoints of a compiled model, and a compiled function that has checkpoints."""
    torch.compiler.reset()
    model, plain = net(), net()
    (x,) = data()
    if where == "inside":
        compiled: Any = torch.compile(model, backend="aot_eager")
        step(model, lambda x: checkpoint(compiled, x, use_reentrant=reentrant), x)
    else:
        run = torch.compile(lambda x: checkpoint(model, x, use_reentrant=reentrant), backend="aot_eager")
        step(model, run, x)
    step(plain, plain, x)
    for name, value in state(plain).items():
        torch.testing.assert_close(state(model)[name], value)


def test_a_gradient_of_the_gradient() -> None:
    """Two backward passes through one checkpoint recompute it twice."""
    (x,) = data()
    model, leaf = net(), x.requires_grad_()
    y = checkpoint(model, leaf, use_reentrant=False)
    (dx,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
    dx.square().sum().backward()
    assert counted(model) == [1]


# ----------------------------------------------------------------------- forward passes that are no repetition


def test_a_forward_in_a_backward_pass_moves_nothing() -> None:
    """Documented: whatever runs within autograd's backward pass counts as a recomputation, a hook's forward too."""
    (x,) = data()
    layer, other = net(), xt.BatchNorm2d(3).double()
    leaf = x.clone().requires_grad_()
    leaf.register_hook(lambda dx: other(dx))
    layer(leaf).square().sum().backward()
    assert counted(layer) == [1]
    assert counted(other) == [0] and not other.running_mean.any()


def test_what_runs_after_a_backward_pass_counts_again() -> None:
    """Also after one that a hook has ended with an error."""

    def refuse(dx: Tensor) -> None:
        raise RuntimeError("enough")

    (x,) = data()
    model = net()
    step(model, model, x)
    leaf = x.clone().requires_grad_()
    leaf.register_hook(refuse)
    with pytest.raises(RuntimeError, match="enough"):
        model(leaf).sum().backward()
    model(x)
    assert counted(model) == [3]


@WAYS
def test_an_error_in_the_recomputation_leaves_the_state(reentrant: bool) -> None:
    """The batch was fine the first time, and is NaN when it is recomputed: the policy holds for batches that count."""
    (x,) = data()
    scale = torch.ones((), dtype=torch.float64)
    model = net(nonfinite="raise")
    y = checkpoint(lambda x: model(x * scale), x.clone().requires_grad_(), use_reentrant=reentrant)
    before = {name: value.clone() for name, value in state(model).items()}
    scale.mul_(torch.nan)
    y.sum().backward()
    assert all(torch.equal(value, state(model)[name]) for name, value in before.items())
