"""Tangents outside of torch.func, and gradients in batches: what torch.autograd offers beside backward."""

import pytest
import torch
from beside import TANGENT, WARNS, X, layers, same
from torch.autograd import forward_ad
from torch.func import functional_call

pytestmark = WARNS


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_dual_numbers(which: str, training: bool) -> None:
    """A tangent of any argument reaches y, and none stays in the buffers."""
    found = []
    for layer in layers(training):
        given = {"weight": layer.weight.detach(), "bias": layer.bias.detach(), "x": X}
        with forward_ad.dual_level():
            given[which] = forward_ad.make_dual(given[which], given[which].sin())
            x = given.pop("x")
            y = functional_call(layer, given, (x,))
            found.append((forward_ad.unpack_dual(y).tangent, dict(layer.named_buffers())))
            assert all(forward_ad.unpack_dual(b).tangent is None for b in layer.buffers())
    assert found[0][0] is not None
    same(found[0], found[1])


def test_forward_over_a_recorded_reverse() -> None:
    """The graph is recorded first, and its gradient then has a tangent."""
    found = []
    for layer in layers():
        x = X.clone().requires_grad_()
        y = layer(x)
        with forward_ad.dual_level():
            dy = forward_ad.make_dual(X, TANGENT)
            dx, dweight = torch.autograd.grad(y, (x, layer.weight), dy)
            found.append([forward_ad.unpack_dual(t).tangent for t in (dx, dweight)])
    same(found[0], found[1])


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobians(training: bool, strategy: str) -> None:
    found = []
    for layer in layers(training):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, layer=layer: layer(x)[:, :, 0].pow(2), X, vectorize=True, strategy=strategy
        )
        curvature = torch.autograd.functional.hessian(
            lambda x, layer=layer: layer(x).pow(3).sum(), X[:, :, :1, :2], vectorize=True
        )
        found.append((jacobian, curvature, layer.num_batches_tracked))
    same(found[0], found[1])


def test_batches_of_gradients() -> None:
    found = []
    for layer in layers():
        x = X.clone().requires_grad_()
        dy = torch.stack((X, TANGENT))
        inputs = (x, *layer.parameters())
        y = layer(x)
        first = torch.autograd.grad(y, inputs, dy, is_grads_batched=True, create_graph=True)
        again = torch.autograd.grad(layer(x).pow(3).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(
            again, inputs, [torch.stack((g, g * 2)) for g in again], is_grads_batched=True
        )
        found.append((first, second))
    same(found[0], found[1])
