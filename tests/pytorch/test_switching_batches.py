"""Batches with nothing in them, and with one value per channel."""

import copy
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import DegenerateBatchError

EMPTY = [(0, 3, 5, 4), (6, 3, 0, 4), (0, 3, 0, 0)]


def data(n: int) -> list[Tensor]:
    """Batches of different means."""
    g = generator("batches")
    return [torch.randn(6, 3, 5, 4, generator=g, dtype=torch.float64) + i for i in range(n)]


def state(layer: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    return {name: value.detach().clone() for name, value in tensors}


def same(layer: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether every parameter and buffer is what it was, bit by bit."""
    return all(torch.equal(value, before[name]) for name, value in state(layer).items())


# ------------------------------------------------------------------------------------------------- empty batches


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_an_empty_batch_leaves_statistics_and_counters(
    shape: tuple[int, ...], momentum: float | None, nonfinite: str
) -> None:
    layer = xt.BatchNorm2d(3, momentum=momentum, nonfinite=nonfinite).double()
    layer(data(1)[0])
    before = state(layer)
    x = torch.empty(shape, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert y.shape == shape and same(layer, before)
    y.sum().backward()
    assert x.grad is not None and x.grad.shape == shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()


def average(layer: nn.Module) -> Tensor:
    """Mean of the layer's running mean after three batches, of means 0, 1 and 2, and empty ones between."""
    for x in data(3):
        layer(x)
        layer(x[:0])
    assert isinstance(layer.running_mean, Tensor)
    return layer.running_mean


def test_the_average_of_all_batches_is_right_after_empty_ones() -> None:
    expected = torch.stack([x.mean((0, 2, 3)) for x in data(3)]).mean(0)
    layer = xt.BatchNorm2d(3, momentum=None).double()
    torch.testing.assert_close(average(layer), expected)
    assert layer.num_batches_tracked == 3


def test_torch_counts_empty_batches() -> None:
    """The trouble: each empty batch makes the next one count for less than its share."""
    expected = torch.stack([x.mean((0, 2, 3)) for x in data(3)]).mean(0)
    layer = nn.BatchNorm2d(3, momentum=None).double()
    assert (average(layer) - expected).abs().min() > 0.1
    assert layer.num_batches_tracked == 6


def test_an_empty_batch_in_evaluation_and_of_no_channels() -> None:
    layer = xt.BatchNorm2d(3).eval()
    before = state(layer)
    assert layer(torch.empty(0, 3, 5, 4)).shape == (0, 3, 5, 4) and same(layer, before)
    nothing = torch.empty(6, 0, 5, 4)
    assert xt.BatchNorm2d(0)(nothing).shape == nothing.shape
    with pytest.raises(IndexError):
        nn.BatchNorm2d(0)(nothing)


def test_an_empty_batch_with_everything_that_a_call_may_have() -> None:
    layer = xt.BatchNorm2d(3, activation="silu")
    x, residual = torch.empty(2, 0, 3, 5, 4)
    assert layer(x, residual=residual, mask=torch.empty(0, 1, 5, 4)).shape == x.shape
    running = torch.zeros(3), torch.ones(3)
    assert xt.batch_norm(x, *running, training=True).shape == x.shape
    assert not running[0].any() and bool((running[1] == 1).all())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("order", [(1, 3, 0, 2), (3, 1, 2, 0), (2, 0, 3, 1)], ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_an_empty_batch_in_any_memory_order(
    order: tuple[int, ...], activation: str | None, training: bool
) -> None:
    x = torch.empty(4, 0, 5, 3).permute(order).requires_grad_()
    layer = xt.BatchNorm2d(x.shape[1], activation=activation).train(training)
    y = layer(x, residual=torch.empty(x.shape))
    y.sum().backward()
    assert y.shape == x.shape and x.grad is not None and x.grad.shape == x.shape
    assert layer.weight.grad is not None and not layer.weight.grad.any()


# ------------------------------------------------------------------------------------------ one value per channel


class Pooled(nn.Module):
    """A network whose last layer gets one value per channel when it gets one image."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), layer(4))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features, normalized."""
        y: Tensor = self.head(self.trunk(x))
        return y


def test_one_value_per_channel_says_which_layer_which_shape_and_why() -> None:
    model = Pooled(xt.BatchNorm2d)
    before = state(model)
    with pytest.raises(DegenerateBatchError) as raised:
        model(torch.randn(1, 3, 8, 8))
    assert str(raised.value) == (
        "BatchNorm2d 'head.1': batch_norm: Expected more than 1 value per channel when training, got input size "
        "torch.Size([1, 4, 1, 1]): a single value has no variance. The usual causes: a last, smaller batch "
        "(drop_last=True in the loader), pooling to 1x1 before the layer, or a model used for inference without "
        "model.eval()."
    )
    assert same(model, before)


def test_torch_says_no_layer() -> None:
    """The trouble: a model of a hundred layers, and none of them is named. And the counter has moved."""
    model = Pooled(nn.BatchNorm2d)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training") as raised:
        model(torch.randn(1, 3, 8, 8))
    assert "head" not in str(raised.value)
    assert model.head[1].num_batches_tracked == 1


def test_what_catches_torchs_error_catches_ours() -> None:
    """The same class, and the words that programs look for."""
    for layer in (nn.BatchNorm1d(4), xt.BatchNorm1d(4)):
        with pytest.raises(
            ValueError, match=r"Expected more than 1 value per channel when training, got input size"
        ):
            layer(torch.randn(1, 4))


def test_one_value_is_enough_where_nothing_is_averaged() -> None:
    """Evaluation, a frozen layer, and a batch of two."""
    x = torch.randn(1, 4)
    layer = xt.BatchNorm1d(4)
    frozen = xt.freeze(copy.deepcopy(layer))
    assert torch.equal(frozen(x), layer.eval()(x))
    assert bool(layer.train()(torch.cat((x, x + 1))).isfinite().all())


@pytest.mark.parametrize("options", [{}, {"correction": 1}, {"running_correction": 0}], ids=str)
def test_two_values_per_channel_are_enough(options: dict[str, Any]) -> None:
    x = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    layer = xt.BatchNorm1d(1, eps=1e-12, momentum=1.0, **options).double()
    scale = 2**-0.5 if options.get("correction") else 1
    torch.testing.assert_close(layer(x).flatten(), scale * torch.tensor([-1.0, 1.0], dtype=torch.float64))
    assert layer.running_mean == 2
    torch.testing.assert_close(float(layer.running_var), 1.0 if "running_correction" in options else 2.0)
