"""Padding: with a mask the statistics, y and the gradients are those of the valid positions, whatever is elsewhere."""

import math
from typing import Any

import pytest
import torch
from definition import ACTIVATIONS, Problem, definition, generator, relative
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

import xhat.torch as xt
from xhat.errors import ShapeError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

LENGTHS = [7, 3, 5, 1]


def sequences(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Sequences of different lengths, each (channels, time)."""
    g = generator("sequences")
    return [(torch.randn(5, n, generator=g, dtype=torch.float64) * 2 + 4).to(dtype) for n in LENGTHS]


def padded(value: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """The sequences as (N, C, L), filled with this value, and where they are, as (N, 1, L)."""
    x = torch.full((len(LENGTHS), 5, max(LENGTHS)), value, dtype=dtype)
    keep = torch.zeros(len(LENGTHS), 1, max(LENGTHS), dtype=torch.bool)
    for i, sequence in enumerate(sequences(dtype)):
        x[i, :, : LENGTHS[i]] = sequence
        keep[i, :, : LENGTHS[i]] = True
    return x, keep


def joined(x: Tensor) -> Tensor:
    """What is valid, as one (steps, channels) without padding."""
    return torch.cat([x[i, :, :n].T for i, n in enumerate(LENGTHS)])


def layers(**options: Any) -> tuple[xt.BatchNorm1d, xt.BatchNorm1d]:
    """Two that are alike."""
    pair = xt.BatchNorm1d(5, **options), xt.BatchNorm1d(5, **options)
    for layer in pair:
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0]))
            layer.bias.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0]))
    return pair


# ------------------------------------------------------------------------------------------- the valid positions


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("filler", [0.0, 1e6, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("way", ["kernels", "composed"])
def test_padding_changes_nothing(way: str, filler: float, activation: Any) -> None:
    """As the sequences without padding: y, dx, dweight, dbias and the running statistics, by every way."""
    x, keep = padded(filler)
    short, long = layers(activation=activation)
    short, long = short.double(), long.double()
    dy = torch.randn(x.shape, generator=generator("dy"), dtype=torch.float64) * keep
    leaf, valid = x.requires_grad_(), joined(x.detach()).requires_grad_()
    mask = keep.double().requires_grad_() if way == "composed" else keep
    y, expected = long(leaf, mask=mask), short(valid)
    y.backward(dy)
    expected.backward(joined(dy))
    assert leaf.grad is not None and valid.grad is not None
    pairs = [(joined(y), expected), (joined(leaf.grad), valid.grad)]
    pairs += [(getattr(long, name).grad, getattr(short, name).grad) for name in ("weight", "bias")]
    pairs += [(getattr(long, name), getattr(short, name)) for name in ("running_mean", "running_var")]
    for got, wanted in pairs:
        assert relative(got.detach(), wanted.detach()) < 1e-13
    assert bool((leaf.grad[~keep.expand_as(x)] == 0).all())


def test_torch_counts_padding() -> None:
    """The trouble: torch's layer has no mask, and zeros are numbers to it."""
    x, _ = padded(0.0)
    theirs = nn.BatchNorm1d(5, momentum=1.0).double()
    theirs(x)
    assert (theirs.running_mean / joined(x).mean(0) - 1).abs().min() > 0.3
    with pytest.raises(TypeError):
        theirs(x, mask=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_whatever_the_padding_is(dtype: torch.dtype) -> None:
    results = []
    for filler in (0.0, math.nan):
        x, keep = padded(filler, dtype)
        leaf = x.requires_grad_()
        layer = layers()[0]
        y = layer(leaf, mask=keep)
        torch.where(keep, y, 0).square().sum().backward()
        assert leaf.grad is not None
        results.append((joined(y), joined(leaf.grad), layer.running_mean, layer.running_var))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_padding_in_a_transform() -> None:
    """torch.func.grad and a Jacobian-vector product look at the valid positions as well."""
    x, keep = padded(math.nan)

    def loss(x: Tensor) -> Tensor:
        y = xt.batch_norm(x, None, None, training=True, mask=keep)
        return (torch.where(keep, y, 0.0) * torch.arange(7)).sigmoid().sum()

    leaf = x.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
    torch.testing.assert_close(torch.func.grad(loss)(x), leaf.grad)
    tangent = torch.randn(x.shape, generator=generator("tangent"), dtype=torch.float64)
    _, moved = torch.func.jvp(loss, (x,), (tangent,))
    torch.testing.assert_close(moved, (leaf.grad * tangent).sum())


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_padding_in_a_double_backward(filler: float, dtype: torch.dtype) -> None:
    """The gradient of the gradient's square, which is that of x without padding."""

    def second(x: Tensor, mask: Tensor | None, keep: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        y = xt.batch_norm(x, None, None, training=True, mask=mask)
        looked_at = torch.where(keep, y, 0.0).sigmoid().sum()
        (dx,) = torch.autograd.grad(looked_at, x, create_graph=True)
        (ddx,) = torch.autograd.grad(torch.where(keep, dx, 0.0).square().sum(), x)
        return ddx

    x, keep = padded(filler, dtype)
    valid = joined(x)
    expected = second(valid, None, torch.ones(len(valid), 1, dtype=torch.bool))
    found = second(x, keep, keep)
    assert bool(found.isfinite().all())
    assert relative(joined(found).double(), expected.double()) < (1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bool])
@pytest.mark.parametrize("order", [1, 2])
def test_a_mask_may_be_filled_anew_before_the_gradient_is_asked(kind: torch.dtype, order: int) -> None:
    x = torch.randn(6, 5, generator=generator("anew"), dtype=torch.float64)
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).to(kind).unsqueeze(1)

    def gradient(mask: Tensor, later: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        y = xt.batch_norm(leaf, None, None, training=True, mask=mask, activation="silu")
        found = leaf
        for k in range(order):
            (found,) = torch.autograd.grad(
                (y if k == 0 else found).square().sum(), leaf, create_graph=k + 1 < order
            )
            mask.copy_(later)
        return found

    assert torch.equal(gradient(mask.clone(), torch.ones_like(mask)), gradient(mask.clone(), mask))


@pytest.mark.parametrize("scale", [1e39, 1e-46])
@pytest.mark.parametrize("order", [1, 2])
def test_weights_beyond_float32(scale: float, order: int) -> None:
    """Only their ratios count, in x of float32 as well."""
    x = torch.randn(6, 5, generator=generator("beyond"))
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0, 1.0], dtype=torch.float64).unsqueeze(1)
    results = []
    for mask in (weights, weights * scale):
        leaf = x.clone().requires_grad_()
        y = xt.batch_norm(leaf, None, None, training=True, mask=mask)
        looked_at = y.sigmoid().sum()
        for k in range(order):
            (found,) = torch.autograd.grad(looked_at, leaf, create_graph=k + 1 < order)
            looked_at = found.square().sum()
        results.append(found)
    assert relative(results[1].double(), results[0].double()) < 1e-5
    leaf = x.clone().requires_grad_()
    xt.batch_norm(leaf, None, None, training=True, mask=weights * scale).backward(torch.zeros_like(x))
    assert torch.equal(leaf.grad, torch.zeros_like(x))


def test_padding_that_the_loss_looks_at_is_seen() -> None:
    """y is NaN there, and so are the gradients of whoever uses it: nothing is hidden."""
    x, keep = padded(math.nan)
    leaf, layer = x.requires_grad_(), layers()[0].double()
    y = layer(leaf, mask=keep)
    assert torch.equal(y.isnan(), ~keep.expand_as(x))
    y.square().sum().backward()
    assert bool(layer.weight.grad.isnan().all())


# ----------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("correction", [0, 1])
def test_whole_weights_are_repetitions(correction: int) -> None:
    """A weight of 3 is a position that is there three times; the running variance divides by sum w - 1."""
    g = generator("weights")
    x = torch.randn(9, 5, generator=g, dtype=torch.float64)
    w = torch.tensor([3, 1, 0, 2, 1, 5, 1, 0, 2])
    once, many = (layer.double() for layer in layers(correction=correction))
    y = once(x, mask=w.reshape(-1, 1))
    expected = many(x.repeat_interleave(w, 0))
    assert relative(y.detach().repeat_interleave(w, 0), expected.detach()) < 1e-14
    for name in ("running_mean", "running_var"):
        assert relative(getattr(once, name), getattr(many, name)) < 1e-14


@pytest.mark.parametrize(
    "kind", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32]
)
@pytest.mark.parametrize(
    "shape", [(6, 1, 1, 1), (1, 1, 4, 3), (6, 1, 4, 1), (4, 1), (3,), (1, 6, 4, 3)], ids=str
)
def test_masks_of_every_dtype_that_broadcast(kind: torch.dtype, shape: tuple[int, ...]) -> None:
    g = generator("broadcast")
    x = torch.randn(6, 5, 4, 3, generator=g, dtype=torch.float64)
    mask = torch.randint(0, 4, shape, generator=g).to(kind)
    if shape == (1, 6, 4, 3):
        with pytest.raises(
            ShapeError, match=r"mask has shape \(1, 6, 4, 3\), expected one that broadcasts to"
        ):
            xt.batch_norm(x, None, None, training=True, mask=mask)
        return
    expected = definition(Problem(x, mask=mask.double()))
    running = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    y = xt.batch_norm(x, *running, training=True, momentum=1.0, mask=mask)
    assert relative(y, expected.y) < 1e-14
    assert relative(running[0], expected.mean) < 1e-14
    assert relative(running[1], expected.var * expected.m / (expected.m - 1)) < 1e-14


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("activation", [None, "silu", ("leaky_relu", 0.1)], ids=str)
def test_the_gradient_with_respect_to_the_weights(activation: Any, correction: int) -> None:
    """Against finite differences, the gradient's gradient too; y is what it is without."""
    g = generator("learned weights")
    leaves = [
        torch.randn(3, 2, 4, generator=g, dtype=torch.float64),
        0.5 + torch.rand(3, 1, 4, generator=g).double(),
    ]
    leaves += [torch.randn(2, generator=g, dtype=torch.float64) for _ in range(2)]

    def run(x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        return xt.batch_norm(
            x, None, None, gamma, beta, True, mask=w, correction=correction, activation=activation
        )

    for leaf in leaves:
        leaf.requires_grad_()
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)
    torch.testing.assert_close(run(*leaves), run(leaves[0], leaves[1].detach(), *leaves[2:]))


def test_a_mask_in_evaluation_is_ignored() -> None:
    """Documented: it weighs the batch's statistics, and there are none; y is given at every position."""
    x, keep = padded(1.0)
    layer = layers()[0].double().eval()
    assert torch.equal(layer(x, mask=keep), layer(x))
    assert torch.equal(xt.freeze(layer).train()(x, mask=keep), layer.eval()(x))


def test_small_weights_have_a_convention() -> None:
    """Weights that sum to 0.6 have statistics; what a running variance divides by is then m, not m - 1."""
    x = torch.randn(6, 5, generator=generator("refused"), dtype=torch.float64)
    layer = xt.BatchNorm1d(5, momentum=1.0, running_correction=0).double()
    layer(x, mask=torch.full((6, 1), 0.1))
    torch.testing.assert_close(layer.running_var, x.var(0, correction=0))
