"""What comes in: tensors of other classes, strides and kinds, gradients that are asked in part, twice, or too late."""

import itertools
from typing import Any

import pytest
import torch
from beside import CHANNELS, TANGENT, X, layers, same, step
from definition import Problem, definition, problem
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import xhat.torch as xt


def agree(x: Tensor, dy: Tensor, training: bool = True) -> None:
    """Our layer and torch's, and ours with ordinary tensors of the same numbers."""
    ours, theirs = layers(training)
    found = step(ours, x, dy)
    same(found, step(theirs, x, dy))
    again, _ = layers(training)
    same(found, step(again, x.resolve_neg().clone(), dy.resolve_neg().clone()))


NEGATIVE = torch.complex(TANGENT, X).conj().imag  # a view whose numbers lie in memory with the other sign


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_views_with_another_sign_in_memory(training: bool) -> None:
    assert NEGATIVE.is_neg() and not torch.equal(NEGATIVE, X)
    for x, dy in itertools.product((NEGATIVE, X), (NEGATIVE, TANGENT)):
        agree(x, dy, training)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gradients_that_lie_otherwise_than_x(training: bool) -> None:
    one = torch.ones((), dtype=X.dtype)
    last = X.to(memory_format=torch.channels_last)
    for dy in (
        one.expand(X.shape),  # of y.sum()
        TANGENT[:1, :, :1].expand(X.shape),
        TANGENT.to(memory_format=torch.channels_last),
        TANGENT.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        torch._efficientzerotensor(X.shape, dtype=X.dtype),
    ):
        for x in (X, last, X.flip(0)[::1], torch.stack((X, X), -1)[..., 0]):
            agree(x, dy, training)


def test_parameters_and_statistics_with_strides() -> None:
    ours, theirs = layers()
    for layer in (ours, theirs):
        layer.weight = nn.Parameter(torch.linspace(-1, 2, 6, dtype=X.dtype)[::2])
        layer.bias = nn.Parameter(torch.tensor([0.5], dtype=X.dtype).expand(CHANNELS))
        layer.running_mean = torch.linspace(0, 1, 9, dtype=X.dtype).reshape(3, 3)[:, 1]
        layer.running_var = torch.linspace(1, 2, 6, dtype=X.dtype)[1::2]
    same(step(ours, X, TANGENT), step(theirs, X, TANGENT))
    same(step(ours.eval(), X, TANGENT), step(theirs.eval(), X, TANGENT))


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_subset_of_gradients(training: bool, activation: str | None) -> None:
    """What asks for a gradient gets it, and nothing else does."""
    whole = problem(X, residual=True)
    statistics = None if training else (torch.linspace(0, 1, CHANNELS), torch.linspace(1, 2, CHANNELS))
    for asked in itertools.product((False, True), repeat=4):
        given = [t.detach().requires_grad_(a) for t, a in zip(whole[:4], asked, strict=True)]  # type: ignore[union-attr]
        p = Problem(*given)
        mean, var = statistics or (None, None)
        y = xt.batch_norm(
            p.x, mean, var, p.weight, p.bias, training, residual=p.residual, activation=activation
        )
        expected = definition(p, statistics, activation=activation).y
        assert y.requires_grad == any(asked)
        if any(asked):
            same(torch.autograd.grad(y, p.asked, TANGENT), torch.autograd.grad(expected, p.asked, TANGENT))


def activated(p: Problem) -> Tensor:
    """The function with a residual and silu."""
    return xt.batch_norm(p.x, None, None, p.weight, p.bias, True, residual=p.residual, activation="silu")


def test_one_tensor_in_two_places() -> None:
    """x as its own residual, and one vector as weight and bias: gradients add."""
    for order in (1, 2):
        found = []
        for by in (activated, lambda p: definition(p, activation="silu").y):
            x, w = X.clone().requires_grad_(), torch.linspace(1, 2, CHANNELS, dtype=X.dtype).requires_grad_()
            value = (by(Problem(x, w, w, x)) ** 3).sum()
            gradients = torch.autograd.grad(value, (x, w), create_graph=True)
            if order == 2:
                gradients = torch.autograd.grad(sum(g.square().sum() for g in gradients), (x, w))
            found.append(gradients)
        same(found[0], found[1])


# -------------------------------------------------------------------------------------------- the graph, and changes


def test_a_graph_that_is_kept() -> None:
    ours, _ = layers()
    x = X.clone().requires_grad_()
    loss = (ours(x) ** 3).sum()
    first = torch.autograd.grad(loss, x, retain_graph=True)
    again = torch.autograd.grad(loss, x)
    assert torch.equal(first[0], again[0])
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, x)


def test_an_activation_in_place_after_the_layer() -> None:
    """y is not kept, so that it may change."""
    found = []
    for layer in layers():
        model = nn.Sequential(layer, nn.ReLU(inplace=True))
        found.append(step(model, X, TANGENT))
    same(found[0], found[1])


class Named(Tensor):
    """A subclass that changes nothing."""


class Recorded(Tensor):
    """A subclass that sees every call."""

    seen: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(getattr(func, "__name__", func)))
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("kind", [Named, Recorded])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_subclass_is_computed_by_operations_that_it_sees(kind: type[Tensor], training: bool) -> None:
    Recorded.seen.clear()
    ours, theirs = layers(training)
    x = X.clone().as_subclass(kind).requires_grad_()
    y = ours(x)
    y.backward(TANGENT)
    assert type(y) is kind
    expected = step(theirs, X, TANGENT)
    same([y.detach().as_subclass(Tensor), x.grad, *ours.buffers()], [*expected[:2], *expected[4:]])
    assert kind is Named or {"mul", "sub"} <= set(Recorded.seen)


def test_a_wrapper_of_two_tensors() -> None:
    """A subclass without memory of its own: each half is a batch."""
    ours, theirs = layers()
    x = TwoTensor(X, X.exp()).requires_grad_()
    y = ours(x)
    assert type(y) is TwoTensor
    same((y.a, y.b), (theirs(X), theirs(X.exp())))


class Seen(TorchDispatchMode):
    """A mode that sees every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Passing(TorchFunctionMode):
    """A mode that changes nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_modes() -> None:
    """One that sees operators sees ours; what is made does not follow the default device."""
    expected = step(layers()[1], X, TANGENT)
    with Seen() as mode:
        same(step(layers()[0], X, TANGENT), expected)
    assert {"xhat.batch_norm.default", "xhat.batch_norm_backward.default", "xhat.track.default"} <= set(
        mode.seen
    )
    ours = [layers(training)[0] for training in (True, False)]
    with Passing():
        same(step(ours[0], X, TANGENT), expected)
    ours = [layers(training)[0] for training in (True, False)]
    with torch.device("meta"):
        found = [step(layer, X, TANGENT) for layer in ours]
        cropped = ours[1](X[:, :, :, 1:-1])
    same(found[0], expected)
    same(found[1], step(layers(training=False)[1], X, TANGENT))
    same(cropped, layers(training=False)[1](X[:, :, :, 1:-1]))
