"""Tensors whose storage was resized, that have no memory, or an odd address: an error, or the right numbers.

torch's own operations read beyond such storages.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

import xhat.torch as xt
from xhat.errors import ArgumentError, ShapeError

BYTES = pytest.mark.parametrize("left", [0, 8], ids=["none left", "8 bytes left"])


def resized(tensor: Any, left: int) -> None:
    tensor.untyped_storage().resize_(left)


def layer_and_x(**options: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    return xt.BatchNorm1d(5, **options), torch.randn(8, 5, requires_grad=True)


@BYTES
@pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"nonfinite": "skip"}, {"momentum": None}], ids=str)
def test_tensors_of_a_layer_in_the_forward_pass(name: str, training: bool, options: Any, left: int) -> None:
    layer, x = layer_and_x(**options)
    layer.train(training)
    resized(getattr(layer, name), left)
    for context in (torch.enable_grad(), torch.no_grad()):
        with context, pytest.raises(ArgumentError, match="beyond its"):
            layer(x)
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_counter_of_batches(momentum: float | None) -> None:
    layer, x = layer_and_x(momentum=momentum)
    resized(layer.num_batches_tracked, 0)
    with pytest.raises(ArgumentError, match="beyond its storage"):
        layer(x)
    assert not layer.running_mean.any()


def test_a_counter_of_several_numbers_makes_no_average() -> None:
    layer, x = layer_and_x(momentum=None)
    layer.num_batches_tracked = torch.zeros(3, dtype=torch.long)
    with pytest.raises(ShapeError, match=r"num_batches_tracked has shape \(3,\)"):
        layer(x)
    assert not layer.running_mean.any()


@BYTES
@pytest.mark.parametrize("name", ["x", "residual", "mask"])
def test_inputs(name: str, left: int) -> None:
    layer, x = layer_and_x()
    given = {"x": x.detach(), "residual": torch.randn(8, 5), "mask": torch.rand(8, 1) + 0.5}
    resized(given[name], left)
    with pytest.raises(ArgumentError, match="beyond its storage"):
        layer(given.pop("x"), **given)


@BYTES
@pytest.mark.parametrize("name", ["x", "weight", "bias", "y"])
def test_what_is_saved_for_the_backward_pass(name: str, left: int) -> None:
    layer, x = layer_and_x(activation="relu")
    y = layer(x, torch.randn(8, 5))
    dy = torch.ones(8, 5)
    resized({"x": x, "weight": layer.weight, "bias": layer.bias, "y": y}[name], left)
    for graph in (False, True):
        with pytest.raises(ArgumentError, match="beyond its storage"):
            torch.autograd.grad(y, x, dy, create_graph=graph, retain_graph=True)


@BYTES
@pytest.mark.parametrize("name", ["x", "weight", "dy"])
def test_what_is_saved_for_a_second_derivative(name: str, left: int) -> None:
    layer, x = layer_and_x()
    dy = torch.randn(8, 5, requires_grad=True)
    (dx,) = torch.autograd.grad(layer(x), x, dy, create_graph=True)
    resized({"x": x, "weight": layer.weight, "dy": dy}[name], left)
    with pytest.raises(ArgumentError, match="beyond its storage"):
        torch.autograd.grad(dx, dy, torch.ones(8, 5))


@BYTES
@pytest.mark.parametrize("name", ["statistics", "weights"])
def test_what_the_node_of_a_graph_holds(name: str, left: int) -> None:
    layer, x = layer_and_x()
    y = layer(x, mask=torch.rand(8, 1) + 0.5)
    resized(getattr(y.grad_fn.run, name), left)
    with pytest.raises((ArgumentError, ShapeError)):
        y.backward(torch.ones(8, 5))


@pytest.mark.parametrize("field", ["strides", "view", "activation_grad"])
def test_a_plan_in_a_graph_that_was_exchanged(field: str) -> None:
    layer, x = layer_and_x()
    y = layer(x)
    run = y.grad_fn.run
    view = run.plan.view._replace(shape=(800_000, 5, 1))
    value = {"strides": (1_000_000, 1, 1), "view": view, "activation_grad": 4}[field]
    y.grad_fn.run = run._replace(plan=run.plan._replace(**{field: value}))
    with pytest.raises(ArgumentError, match=r"beyond its memory|an array is missing"):
        y.backward(torch.ones(8, 5))


@pytest.mark.parametrize("field", ["plan", "statistics", "m"])
def test_a_graph_without_its_forward_pass(field: str) -> None:
    layer, x = layer_and_x()
    y = layer(x)
    y.grad_fn.run = y.grad_fn.run._replace(**{field: None})
    with pytest.raises(ArgumentError, match="does not hold its forward pass"):
        y.sum().backward()


def test_tensors_that_are_known_to_be_zero() -> None:
    """They have no address. As inputs they are zeros, and as running statistics they can't move."""
    layer, x = layer_and_x()
    zeros = torch._efficientzerotensor
    assert not layer(zeros((8, 5))).any()
    y = xt.batch_norm(x, None, None, zeros(5), torch.ones(5), training=True)
    assert torch.equal(y, torch.ones(8, 5))
    (dx,) = torch.autograd.grad(layer(x), x, zeros((8, 5)))
    assert not dx.any()
    y = xt.batch_norm(x, zeros(5), torch.ones(5), eps=1e-12)
    torch.testing.assert_close(y, x)
    for name in ("running_mean", "num_batches_tracked"):
        moving, x = layer_and_x()
        setattr(moving, name, zeros(()) if name == "num_batches_tracked" else zeros(5))
        with pytest.raises(ArgumentError, match="known to be zero"):
            moving(x)


def test_tensors_at_odd_addresses() -> None:
    """torch.frombuffer makes them of any offset."""

    def odd(tensor: Tensor) -> Tensor:
        found = torch.frombuffer(bytearray(tensor.nbytes + 1), dtype=tensor.dtype, offset=1)
        return found.view(tensor.shape).copy_(tensor)

    torch.manual_seed(0)
    x, w, mean, var = torch.randn(8, 5), torch.rand(5), torch.zeros(5), torch.ones(5)
    odd_mean, odd_var = odd(mean), odd(var)
    expected = xt.batch_norm(x, mean, var, w, None, True)
    assert torch.equal(xt.batch_norm(odd(x), odd_mean, odd_var, odd(w), None, True), expected)
    torch.testing.assert_close(odd_mean, mean)
    torch.testing.assert_close(odd_var, var)


def test_no_input() -> None:
    with pytest.raises(TypeError, match="input is None, expected a tensor"):
        xt.batch_norm(None, None, None, training=True)  # type: ignore[arg-type]
