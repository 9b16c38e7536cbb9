"""Tensors and contexts that have changed since the forward pass: an error, or right gradients, and no memory beyond.

The kernels read by address, with the shapes and dtypes of the plan.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

import xhat.torch as xt
from xhat.errors import DtypeError, ShapeError


def graph(**options: Any) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    torch.manual_seed(0)
    x, dy = (torch.randn(6, 5, requires_grad=True) for _ in range(2))
    w = torch.randn(5, requires_grad=True)
    return (x, dy, w), xt.batch_norm(x, None, None, w, training=True, **options)


def second(change: Callable[[Tensor, Tensor, Tensor], None], unpack: Callable[[Tensor], Tensor]) -> Any:
    """The gradients of dx and dweight, whose saved tensors are changed before they are read."""
    (x, dy, w), y = graph()
    with saved_tensors_hooks(lambda t: t, unpack):
        first = torch.autograd.grad(y, (x, w), dy, create_graph=True)
    change(x, dy, w)
    return torch.autograd.grad(first, (x, w, dy), [torch.ones_like(g) for g in first])


def nothing(*_: Tensor) -> None:
    """Changes nothing."""


@pytest.mark.parametrize("dims", [1, 2])
def test_hooks_that_return_another_shape_of_what_a_second_derivative_needs(dims: int) -> None:
    with pytest.raises(ShapeError, match="the saved tensors have shapes"):
        second(nothing, lambda t: t[:1] if t.dim() == dims else t)


@pytest.mark.parametrize("place", [0, 1, 2], ids=["x", "dy", "weight"])
def test_data_of_another_shape_before_a_second_derivative(place: int) -> None:
    def change(*tensors: Tensor) -> None:
        tensors[place].data = tensors[place].data[:1].clone()

    with pytest.raises((ShapeError, RuntimeError), match="shape"):
        second(change, lambda t: t)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_hooks_that_return_another_dtype_of_what_a_second_derivative_needs(dtype: torch.dtype) -> None:
    expected = second(nothing, lambda t: t)
    found = second(nothing, lambda t: t.to(dtype))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["statistics", "weights"])
@pytest.mark.parametrize(
    "form", [lambda t: t.float(), lambda t: t.flatten()[:1].clone()], ids=["dtype", "shape"]
)
def test_what_the_node_of_a_graph_holds_is_not_read_in_another_form(name: str, form: Any) -> None:
    (x, dy, _), y = graph(mask=torch.rand(6, 1) + 0.5)
    tensor = getattr(y.grad_fn.run, name)
    tensor.data = form(tensor.data)
    with pytest.raises(ShapeError, match="the saved tensors have shapes"):
        torch.autograd.grad(y, x, dy.detach())


def test_a_run_of_another_call_is_refused() -> None:
    residual = {"residual": torch.zeros(6, 5), "activation": "relu"}
    (x, dy, _), y = graph()
    y.grad_fn.run = graph(**residual)[1].grad_fn.run
    with pytest.raises(ShapeError, match="the saved tensors have shapes"):
        torch.autograd.grad(y, x, dy.detach())


@pytest.mark.parametrize("saved", [torch.zeros(1, 5), torch.zeros(5), torch.zeros(6, 5).half()])
def test_the_operator_checks_what_was_saved(saved: Tensor) -> None:
    x, statistics = torch.randn(6, 5), torch.ones(2, 5, dtype=torch.float64)
    with pytest.raises((ShapeError, DtypeError), match="saved has shape"):
        torch.ops.xhat.batch_norm_backward(
            x, x, None, None, saved, None, statistics, True, 1e-5, 0, "leaky_relu", 0.0
        )


def test_a_count_of_batches_below_zero_counts_from_one() -> None:
    layer = xt.BatchNorm1d(5, momentum=None)
    layer.num_batches_tracked.fill_(-1)
    x = torch.randn(6, 5)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean(0))


@pytest.mark.parametrize("name", ["eps", "activation"])
def test_an_option_given_as_a_tensor_is_read_by_each_call(name: str) -> None:
    x, number = torch.randn(6, 5), torch.tensor(0.5)

    def y_for(value: Any) -> Tensor:
        option = value if name == "eps" else ("leaky_relu", value)
        return xt.batch_norm(x, None, None, training=True, **{name: option})

    for value in (0.5, 2.0):
        number.fill_(value)
        assert torch.equal(y_for(number), y_for(value))
