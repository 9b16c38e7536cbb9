"""Batches without values, and layers without channels."""

import pytest
import torch
from beside import CHANNELS, same

import xhat.torch as xt

EMPTY = [(0, 3), (0, 3, 7), (4, 3, 0), (0, 3, 2, 5), (4, 3, 0, 5), (0, 3, 0, 0), (2, 3, 4, 0, 5)]


@pytest.mark.parametrize("shape", EMPTY, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_an_empty_batch(shape: tuple[int, ...], training: bool, activation: str | None) -> None:
    """y and dx are empty, parameters have gradients of 0, also of second order, and nothing has moved."""
    kind = {2: xt.BatchNorm1d, 3: xt.BatchNorm1d, 4: xt.BatchNorm2d, 5: xt.BatchNorm3d}[len(shape)]
    layer = kind(CHANNELS, activation=activation).train(training)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    x = torch.empty(shape, requires_grad=True)
    mask = torch.ones(shape[0], *[1] * (len(shape) - 1)) if shape[0] else None
    for given in ({}, {"residual": torch.empty(shape)}, {"mask": mask}):
        y = layer(x, **given)
        gradients = torch.autograd.grad(y.sum(), (x, layer.weight, layer.bias), create_graph=True)
        assert y.shape == gradients[0].shape == shape
        same(list(gradients[1:]), [torch.zeros(CHANNELS)] * 2)
        second = torch.autograd.grad(gradients[1].sum(), (x, layer.weight), allow_unused=True)
        assert all(g is None or not g.any() for g in second)
    torch.testing.assert_close(dict(layer.state_dict()), before, rtol=0, atol=0)


def test_no_channels() -> None:
    """torch's layer raises IndexError in training."""
    for training in (True, False):
        layer = xt.BatchNorm2d(0).train(training)
        x = torch.empty(4, 0, 2, 5, requires_grad=True)
        y = layer(x)
        y.sum().backward()
        assert y.shape == x.shape and layer.num_batches_tracked == 0
