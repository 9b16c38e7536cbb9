"""Tensors that change between the forward and the backward pass: by hooks, in place, or replaced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import CHANNELS, TANGENT, X, layers, same, step
from definition import definition, problem, relative
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ShapeError


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
    "x": lambda t: t[:1] if t.dim() == 4 else t,
    "a dimension more": lambda t: t[None] if t.dim() == 4 else t,
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
