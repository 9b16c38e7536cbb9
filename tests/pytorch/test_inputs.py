"""What comes in: tensors of other classes, strides and kinds, gradients that are asked in part, twice, or too late."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import CHANNELS, TANGENT, X, layers, same
from definition import Problem, definition, problem, relative
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import xhat.torch as xt
from xhat.errors import ShapeError


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """y, the gradients and the buffers."""
    leaf = x.detach().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    return [y.detach(), leaf.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]  # type: ignore[list-item]


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


def test_a_bias_may_change_where_no_activation_needs_it() -> None:
    """As with torch's layer: two losses, and a step of an optimizer between their backward passes."""
    layer = xt.BatchNorm2d(CHANNELS).double()
    layer.weight.requires_grad_(False)
    first, second = layer(X), layer(X)
    first.sum().backward()
    torch.optim.SGD([layer.bias], lr=0.1).step()
    second.sum().backward()
    same([layer.bias.grad], [torch.full_like(layer.bias, 2.0 * X[:, 0].numel())])


SHORTENED: dict[str, Callable[[Tensor], Tensor]] = {
    "weight": lambda t: t[:1] if t.dim() == 1 else t,
    "x": lambda t: t[:1] if t.dim() == 3 else t,
    "a dimension more": lambda t: t[None] if t.dim() == 3 else t,
}


@pytest.mark.parametrize("hook", SHORTENED.values(), ids=SHORTENED)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_hook_that_returns_another_shape_is_refused(
    hook: Callable[[Tensor], Tensor], activation: Any
) -> None:
    """torch broadcasts, or says "invalid gradient"; the kernels would read beyond the memory."""
    x, weight = X.clone().requires_grad_(), torch.ones(CHANNELS, dtype=X.dtype, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t):
        y = xt.batch_norm(x, None, None, weight, weight * 2, True, activation=activation)
    with pytest.raises(ShapeError, match="the saved tensors have shapes"):
        torch.autograd.grad(y, (x, weight), TANGENT)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_parameter_that_is_replaced_before_the_backward_pass(name: str, activation: Any) -> None:
    """`.data = ` leaves no trace for autograd; the kernels neither read nor write by the old shape."""
    layer = xt.BatchNorm1d(64, activation=activation)
    y = layer(torch.randn(8, 64, requires_grad=True))
    parameter = getattr(layer, name)
    parameter.data = parameter.data[:2].clone()
    if name == "bias" and activation is None:  # the gradient does not depend on it
        y.sum().backward()
        assert torch.equal(parameter.grad, torch.full((64,), 8.0))
    else:
        with pytest.raises(ShapeError, match="the saved tensors have shapes"):
            y.sum().backward()


CHANGES: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "x": lambda layer, x, y: x.mul_(2),
    "weight": lambda layer, x, y: layer.weight.mul_(2),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_a_change_of_what_the_gradient_needs_is_refused(
    what: str, training: bool, activation: str | None
) -> None:
    """As torch's layer does."""
    ours, theirs = layers(training)
    ours.activation = activation
    for layer in (ours, theirs):
        x = X.clone().requires_grad_() * 1
        y = layer(x)
        with torch.no_grad():
            CHANGES[what](layer, x, y)
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
            y.sum().backward()


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_hooks_on_what_is_kept(activation: str | None) -> None:
    """Kept elsewhere, in other strides, or with fewer digits: the gradient is that of what comes back."""
    ways: list[tuple[Callable[[Tensor], Any], Callable[[Any], Tensor], float]] = [
        (lambda t: t.numpy(force=True).copy(), torch.from_numpy, 1e-9),
        (lambda t: t.mT.contiguous().mT if t.dim() > 2 else t.clone(), lambda t: t, 1e-9),
        (lambda t: t.float(), lambda t: t, 1e-4),
        (lambda t: t.bfloat16(), lambda t: t.double(), 0.1),
    ]
    p = problem(X, residual=True).leaves()
    options = dict(residual=p.residual, activation=activation)
    expected = torch.autograd.grad(definition(p, activation=activation).y, p.asked, TANGENT)
    for pack, unpack, tolerance in ways:
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            y = xt.batch_norm(p.x, None, None, p.weight, p.bias, True, **options)
        found = torch.autograd.grad(y, p.asked, TANGENT)
        assert all(relative(a, b) < tolerance for a, b in zip(found, expected, strict=True))
        assert all(a.dtype == t.dtype for a, t in zip(found, p.asked, strict=True))


def test_a_change_of_a_result_that_the_gradient_needs_is_refused() -> None:
    """With a residual and a ReLU, y tells where it let through."""
    layer = xt.BatchNorm2d(CHANNELS, activation="relu", dtype=X.dtype)
    for grow in (lambda y: y.mul_(2), lambda y: y.add_(1)):
        y = layer(X.clone().requires_grad_(), X)
        grow(y)
        with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
            y.sum().backward()


def test_statistics_may_change_before_the_gradient_is_asked() -> None:
    """Two forward passes before one backward pass; torch's layer takes the statistics of the second one for both."""
    ours, theirs = layers(training=False)
    expected = step(layers(training=False)[1], X, TANGENT)[1]
    x = X.clone().requires_grad_()
    y = ours(x)
    ours.train()(X)
    same(torch.autograd.grad(y, x, TANGENT)[0], expected)
    y = theirs(x)
    theirs.train()(X)
    with pytest.raises(AssertionError, match="not close"):
        same(torch.autograd.grad(y, x, TANGENT)[0], expected)


# ---------------------------------------------------------------------------------------------------------- classes


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
