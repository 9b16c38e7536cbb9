"""Published faults of torch's own folds, each beside xt.fold on the same model. The reference is float64.

Each test also asks that torch is still wrong: when it no longer is, the claim goes.
"""

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from left import CalledTwice
from models import evaluated, in_float64, numbers, off
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

import xhat.torch as xt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.fx.experimental.optimization import fuse

X = numbers("rivals", 2, 4, 7, 9)


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """torch warns of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def largest(found: Tensor, model: nn.Module, x: Tensor) -> float:
    return float((found.detach().double() - in_float64(model, x)).abs().max())


def pair(layer: nn.Module, norm: nn.Module) -> nn.Sequential:
    model: nn.Sequential = evaluated(nn.Sequential(layer, norm))
    return model


def test_a_convolution_that_is_called_twice() -> None:
    """pytorch#104593 (open since 2023), #197539: torch.fx's fuse folds into both calls, without a word."""
    model, x = evaluated(CalledTwice()), X[:, :3]
    assert largest(fuse(copy.deepcopy(model))(x), model, x) > 1
    folded, (change,) = xt.fold(model, x)
    assert not change.folded and largest(folded(x), model, x) < 1e-4


def test_a_linear_layer_whose_batch_norm_is_over_another_axis() -> None:
    """torch.nn.utils.fusion, (N, L, C) with L == C: without a word."""
    model, x = pair(nn.Linear(7, 5), nn.BatchNorm1d(5)), numbers("middle", 3, 5, 7)
    assert largest(fuse_linear_bn_eval(model[0], model[1])(x), model, x) > 1
    folded, (change,) = xt.fold(model, x)
    assert "its channels are dimension 1 of 3" in str(change.reason) and largest(folded(x), model, x) < 1e-4


def test_a_linear_layer_and_a_batch_norm_without_parameters() -> None:
    model, x = pair(nn.Linear(7, 5), nn.BatchNorm1d(5, affine=False)), numbers("linear", 3, 7)
    with pytest.raises(TypeError):
        fuse_linear_bn_eval(model[0], model[1])
    folded, (change,) = xt.fold(model, x)
    assert change.folded and off(folded, model, x) <= change.bound


def test_a_grouped_transposed_convolution() -> None:
    """pytorch#180995 (open)."""
    model = pair(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6))
    with pytest.raises(RuntimeError):
        fuse_conv_bn_eval(model[0], model[1], transpose=True)
    folded, (change,) = xt.fold(model, X)
    assert change.folded and off(folded, model, X) <= change.bound


def test_a_depthwise_transposed_convolution() -> None:
    """torch's fold fails only when it is run."""
    model = pair(nn.ConvTranspose2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    theirs = fuse_conv_bn_eval(model[0], model[1], transpose=True)
    with pytest.raises(RuntimeError):
        theirs(X)
    folded, (change,) = xt.fold(model, X)
    assert change.folded and off(folded, model, X) <= change.bound


def test_a_parametrized_weight() -> None:
    model = pair(parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6))
    with pytest.raises(KeyError):
        fuse_conv_bn_eval(model[0], model[1])
    folded, (change,) = xt.fold(model, X)
    assert "is computed in each forward" in str(change.reason)
    assert largest(folded(X), model, X) < 1e-4


LEFT: dict[str, Any] = {
    "a transposed convolution": lambda: pair(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)),
    "a convolution behind it": lambda: evaluated(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3))),
    "dropout between them": lambda: evaluated(
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.Dropout(), nn.BatchNorm2d(6))
    ),
}


@pytest.mark.parametrize("model", LEFT.values(), ids=LEFT)
def test_what_torchs_fold_leaves_is_folded(model: Any) -> None:
    model = model()
    assert any(isinstance(m, nn.BatchNorm2d) for m in fuse(copy.deepcopy(model)).modules())
    folded, (change,) = xt.fold(model, X)
    assert change.folded and off(folded, model, X) <= change.bound
