"""One layer and its batch norm: the folded layer is the same function, to the rounding of its weights.

The reference is the unfolded pair in float64, by torch's operations. A fold in float64 agrees to 1e-12. A narrower one
is evaluated in float64 as well, so that nothing but its rounded weights is off, and these are within the stated bound.
"""

from typing import Any

import pytest
import torch
from models import evaluated, in_float64, norms_in, numbers, off
from torch import nn

import xhat.torch as xt

BN = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZES = {1: (11,), 2: (7, 9), 3: (5, 6, 7)}
DIMS = pytest.mark.parametrize("k", [1, 2, 3], ids="{}-d".format)
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "grouped": {"groups": 2},
    "strided, dilated, padded": {"stride": 2, "dilation": 2, "padding": 1},
}


def check(model: nn.Module, x: torch.Tensor, count: int = 1) -> Any:
    """Folds, and compares with float64. Returns the last batch norm's change."""
    before = norms_in(model)
    folded, changes = xt.fold(model, x)
    assert [c.folded for c in changes] == [True] * count, changes
    assert norms_in(folded) == before - count
    error, change = off(folded, model, x), changes[-1]
    values = change.values
    assert error <= (1e-12 * values if x.dtype == torch.float64 else change.bound)
    assert change.bound <= 100 * torch.finfo(x.dtype).eps * max(values, change.gain * float(x.abs().max()))
    return change


@DTYPES
@DIMS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_convolution(k: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = evaluated(nn.Sequential(CONV[k](4, 6, 3, **options), BN[k](6))).to(dtype)
    check(model, numbers("conv", 2, 4, *SIZES[k], dtype=dtype))


@DTYPES
@DIMS
def test_a_depthwise_convolution(k: int, dtype: torch.dtype) -> None:
    model = evaluated(nn.Sequential(CONV[k](4, 8, 3, groups=4), BN[k](8))).to(dtype)
    check(model, numbers("depthwise", 2, 4, *SIZES[k], dtype=dtype))


@DTYPES
@DIMS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_transposed_convolution(k: int, options: dict[str, Any], dtype: torch.dtype) -> None:
    model = evaluated(nn.Sequential(TRANSPOSED[k](4, 6, 3, **options), BN[k](6))).to(dtype)
    check(model, numbers("transposed", 2, 4, *SIZES[k], dtype=dtype))


@DTYPES
def test_a_depthwise_transposed_convolution(dtype: torch.dtype) -> None:
    model = evaluated(nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))).to(dtype)
    check(model, numbers("depthwise transposed", 2, 4, 7, 9, dtype=dtype))


@DTYPES
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_linear_layer(bias: bool, dtype: torch.dtype) -> None:
    model = evaluated(nn.Sequential(nn.Linear(7, 5, bias=bias), nn.BatchNorm1d(5))).to(dtype)
    check(model, numbers("linear", 6, 7, dtype=dtype))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [2, "same"], ids=str)
def test_every_padding_behind_which_the_batch_norm_stands(padding_mode: str, padding: Any) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=padding, padding_mode=padding_mode)
    check(evaluated(nn.Sequential(conv, nn.BatchNorm2d(6))), numbers("padding", 2, 4, 7, 9))


def test_a_batch_norm_without_parameters() -> None:
    model = evaluated(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)))
    check(model, numbers("no affine", 2, 4, 7, 9))


@DTYPES
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_a_batch_norm_before_it(affine: bool, dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4, affine=affine), nn.BatchNorm2d(4))
    folded, changes = xt.fold(evaluated(model).to(dtype), x := numbers("two", 3, 4, 5, 6, dtype=dtype))
    assert [c.into for c in changes] == [(), ("0",)]
    assert off(folded, model, x) <= changes[1].bound + 1e-12


@DTYPES
@DIMS
@pytest.mark.parametrize("groups", [1, 2], ids=["plain", "grouped"])
def test_a_convolution_without_padding_behind_it(k: int, groups: int, dtype: torch.dtype) -> None:
    model = evaluated(nn.Sequential(BN[k](4), CONV[k](4, 6, 3, groups=groups))).to(dtype)
    assert check(model, numbers("ahead", 2, 4, *SIZES[k], dtype=dtype)).into == ("1",)


@DTYPES
@DIMS
@pytest.mark.parametrize(
    "options",
    [{"padding": 1}, {"padding": "same", "groups": 2}, {"padding": 2, "stride": 2, "dilation": 2}],
    ids=str,
)
def test_a_convolution_behind_it_that_pads_with_zeros(
    k: int, options: dict[str, Any], dtype: torch.dtype
) -> None:
    """The padding becomes -shift / scale, which the folded map takes to 0."""
    model = evaluated(nn.Sequential(BN[k](4), CONV[k](4, 6, 3, **options), nn.ReLU())).to(dtype)
    check(model, x := numbers("border", 2, 4, *SIZES[k], dtype=dtype))
    folded, changes = xt.fold(model, x)
    assert folded[1].padding == (0,) * k
    assert xt.unfold(folded, changes)[1].padding == model[1].padding


@DTYPES
def test_a_linear_layer_behind_it(dtype: torch.dtype) -> None:
    model = evaluated(nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 5))).to(dtype)
    check(model, numbers("linear", 6, 7, dtype=dtype))


def test_a_linear_layer_behind_it_with_several_inputs_for_each_channel() -> None:
    model = evaluated(nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 15, 5)))
    check(model, numbers("flatten", 6, 4, 3, 5))


def test_a_convolution_with_a_batch_norm_on_either_side_and_a_third() -> None:
    layers = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
    folded, changes = xt.fold(evaluated(model := nn.Sequential(*layers)), x := numbers("both", 2, 4, 7, 9))
    assert [c.into for c in changes] == [("1",)] * 3
    assert off(folded, model, x) <= changes[0].bound


def test_a_large_mean_is_folded_with_more_digits_than_the_layers_have() -> None:
    """The unfolded pair cancels 1e4 in float32; folded, float64 has done so."""
    model = evaluated(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    with torch.no_grad():
        model[0].bias.fill_(1e4)
        model[1].running_mean.add_(1e4)
    _, (change,) = xt.fold(model, numbers("mean", 2, 4, 7, 9))
    assert 100 * change.error < change.unfolded


def test_the_stated_errors_are_those_of_the_layers() -> None:
    model = evaluated(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    folded, (change,) = xt.fold(model, x := numbers("stated", 2, 4, 7, 9))
    with torch.no_grad():
        exact = in_float64(model, x)
        assert change.error == pytest.approx(float((folded(x).double() - exact).abs().max()), rel=1e-6)
        assert change.unfolded == pytest.approx(float((model(x).double() - exact).abs().max()), rel=1e-6)
        assert change.values == pytest.approx(float(exact.abs().max()))
        gains = folded[0].weight.double().abs().sum((1, 2, 3))
        assert change.gain == pytest.approx(float(gains.max()))
        most = float((gains * x.abs().max() + folded[0].bias.abs()).max())
        assert change.bound == pytest.approx(torch.finfo(torch.float32).eps * most, rel=1e-6)


def test_weights_below_the_normal_numbers_are_within_the_bound() -> None:
    model = evaluated(nn.Sequential(nn.Linear(7, 5, bias=False), nn.BatchNorm1d(5))).half()
    with torch.no_grad():
        model[0].weight.mul_(2e-5)
        model[1].running_mean.zero_()
        model[1].bias.zero_()
    folded, (change,) = xt.fold(model, x := numbers("subnormal", 3, 7, dtype=torch.float16))
    assert 0 < float(folded[0].weight.detach().abs().max()) < torch.finfo(torch.float16).tiny
    assert 0 < off(folded, model, x) <= change.bound
