"""What is no mask: refused in a sentence, and nothing has changed."""

import math
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor

import xhat.torch as xt
from xhat.errors import ArgumentError, DegenerateBatchError, DtypeError, ShapeError

REFUSED: list[tuple[Any, type[Exception], str]] = [
    (torch.zeros(6, 1), DegenerateBatchError, "every weight of the mask is 0"),
    (
        torch.eye(6)[:, :1],
        DegenerateBatchError,
        r"the mask leaves one value per channel of x \(6, 5\), expected at le",
    ),
    (torch.full((6, 1), 0.1), DegenerateBatchError, "m = 0.6, expected more than running_correction=1"),
    (torch.full((6, 1), 1 / 6), DegenerateBatchError, "m = 1, expected more than running_correction=1"),
    (-torch.ones(6, 1), ArgumentError, "mask has a negative, infinite or NaN weight"),
    (torch.full((6, 1), math.nan), ArgumentError, "mask has a negative, infinite or NaN weight"),
    (torch.full((6, 1), math.inf), ArgumentError, "mask has a negative, infinite or NaN weight"),
    (
        torch.full((6, 1), 1e307, dtype=torch.float64),
        ArgumentError,
        r"m = 6e\+307, expected 0 or 1e-300 to 1e300",
    ),
    (torch.ones(6, 5), ShapeError, r"mask has shape \(6, 5\), expected one that broadcasts to \(6, 1\)"),
    (torch.ones(6), ShapeError, r"mask has shape \(6,\), expected one that broadcasts to \(6, 1\)"),
    (torch.ones(6, 1, 1), ShapeError, r"mask has shape \(6, 1, 1\)"),
    (torch.ones(6, 1, dtype=torch.complex64), DtypeError, "mask has dtype torch.complex64"),
    ([[True]] * 6, TypeError, "mask is list, expected a tensor"),
]


@pytest.mark.parametrize(("mask", "error", "said"), REFUSED, ids=[said[:30] for *_, said in REFUSED])
@pytest.mark.parametrize("learned", [False, True], ids=["constant", "learned"])
def test_what_is_no_mask_is_refused_and_nothing_changes(
    mask: Any, error: Any, said: str, learned: bool
) -> None:
    if learned and isinstance(mask, Tensor):
        mask = mask.clone().requires_grad_()
    layer = xt.BatchNorm1d(5)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(error, match=said) as raised:
        layer(torch.randn(6, 5, generator=generator("refused")), mask=mask)
    assert str(raised.value).startswith("BatchNorm1d: batch_norm: ")
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(("mask", "error"), [(-1.0, ArgumentError), (0.0, DegenerateBatchError)])
def test_what_is_no_mask_is_refused_in_forward_mode(mask: float, error: Any) -> None:
    x = torch.randn(6, 5, generator=generator("refused"))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(error, match="mask"):
        xt.batch_norm(x, None, None, training=True, mask=torch.full((6, 1), mask))


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (
            torch.ones(6, 1).to(torch.float8_e4m3fn),
            "mask has dtype torch.float8_e4m3fn, expected bool or real weights",
        ),
        (torch.ones(6, 1, dtype=torch.uint16), "mask has dtype torch.uint16, expected bool or real weights"),
        (torch.ones(6, 1).to_sparse(), r"mask is sparse, expected a strided tensor. Pass mask.to_dense\(\)"),
    ],
)
def test_tensors_that_no_kernel_reads_are_no_masks(mask: Tensor, said: str) -> None:
    with pytest.raises(DtypeError, match=said):
        xt.batch_norm(torch.randn(6, 5, generator=generator("refused")), None, None, training=True, mask=mask)


def test_a_padding_mask_without_the_channels() -> None:
    """(N, L) for (N, C, L), as padding masks are: the sentence has the remedy, and the remedy works."""
    x = torch.randn(4, 3, 6, generator=generator("refused"))
    mask = torch.arange(6).expand(4, 6) < 4
    with pytest.raises(ShapeError, match=r"size 1 along the channels. Pass mask\[:, None\]\.$"):
        xt.batch_norm(x, None, None, training=True, mask=mask)
    y = xt.batch_norm(x, None, None, training=True, mask=mask[:, None])
    assert abs(float(y[:, 0, :4].mean())) < 1e-6


def test_a_sparse_weight_and_no_input() -> None:
    x, weight = torch.randn(6, 5, generator=generator("refused")), torch.ones(5).to_sparse()
    with pytest.raises(DtypeError, match="weight is sparse, expected a strided tensor"):
        xt.batch_norm(x, None, None, weight, training=True)
    with pytest.raises(TypeError, match="BatchNorm1d: batch_norm: input is NoneType, expected a tensor"):
        xt.BatchNorm1d(5)(None)
    with pytest.raises(TypeError, match="training is 'no', expected True or False"):
        xt.batch_norm(x, None, None, training="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("momentum", ["0.1", math.nan, math.inf, -math.inf, True, [0.1]])
def test_what_is_no_momentum(momentum: Any) -> None:
    layer = xt.BatchNorm1d(5, momentum=momentum)
    with pytest.raises(TypeError, match=r"momentum is .*, expected a finite number, or None"):
        layer(torch.randn(6, 5, generator=generator("refused")))
    assert torch.equal(layer.running_mean, torch.zeros(5)) and int(layer.num_batches_tracked) == 0
