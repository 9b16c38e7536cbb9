"""dx and the second gradients of PyTorch tensors are exact at every offset of dy, and of the cotangent of dx."""

from typing import Any

import pytest
import torch
from definition import ACTIVATIONS, MASKS, Problem, definition, generator, relative
from torch import Tensor

import xhat.torch as xt
from xhat.torch import composed

OFFSETS = [0.0, 1e2, 1e4, 1e6]
SHAPES = {"NCHW": (6, 3, 7, 11), "(N, C)": (211, 3)}


class Offset:
    """Tensors of float32; dy is normal + w offset, and 0 where w is 0."""

    def __init__(self, layout: str, mask: str, x: float, dy: float, v: float = 0.0) -> None:
        shape = SHAPES["NCHW" if layout == "NHWC" else layout]
        g = generator("offsets")
        self.offsets = x, dy, v
        w = torch.ones(()) if mask == "none" else torch.rand(shape[0], 1, *shape[2:], generator=g)
        w = (w > 0.3).float() if mask == "bool" else w
        self.mask = None if mask == "none" else w
        self.x = torch.randn(shape, generator=g) + x
        self.dy = (torch.randn(shape, generator=g) + dy * w) * (w > 0)
        self.v = torch.randn(shape, generator=g) + v
        if layout == "NHWC":
            self.x, self.dy, self.v = (
                t.to(memory_format=torch.channels_last) for t in (self.x, self.dy, self.v)
            )
        self.weight, self.bias = torch.rand(3, generator=g) + 0.5, torch.randn(3, generator=g)
        self.a = torch.randn(3, generator=g)

    def expected(self, activation: Any, second: bool) -> list[Tensor]:
        """By the definition in float64, of x and, where it is exact, of dy and v without their offsets."""
        x, dy, v = self.x.double() - self.offsets[0], self.dy.double(), self.v.double()
        if activation is None:
            w = 1 if self.mask is None else self.mask.double()
            dy, v = dy - w * self.offsets[1], v - self.offsets[2]
        mask = None if self.mask is None else self.mask.double()
        return gradients(
            lambda x, weight, bias: definition(Problem(x, weight, bias, None, mask), activation=activation).y,
            (x, self.weight.double(), self.bias.double(), dy, v, self.a.double()), second)  # fmt: skip

    def found(self, activation: Any, second: bool) -> list[Tensor]:
        """By xhat."""
        return gradients(
            lambda x, weight, bias: xt.batch_norm(
                x, None, None, weight, bias, training=True, activation=activation, mask=self.mask),
            (self.x, self.weight, self.bias, self.dy, self.v, self.a), second)  # fmt: skip


def gradients(run: Any, tensors: tuple[Tensor, ...], second: bool) -> list[Tensor]:
    """dx; or the gradients of sum v dx + a dweight with respect to dy, x and weight."""
    x, weight, bias, dy = (t.detach().clone().requires_grad_() for t in tensors[:4])
    found = torch.autograd.grad(run(x, weight, bias), (x, weight), dy, create_graph=second)
    if not second:
        return list(found[:1])
    return list(torch.autograd.grad(found, (dy, x, weight), tensors[4:]))


@pytest.fixture(params=["kernels", "formulas in float32"])
def _by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, or the formulas of other devices."""
    if request.param != "kernels":
        monkeypatch.setattr(composed, "_precision", lambda x, *_: x.dtype)
        monkeypatch.setattr("xhat.torch.functional.engine_for", lambda *_: None)


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("mask", ["none", "bool"])
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("x_offset", [0.0, 1e6])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "(N, C)"])
def test_dx_at_every_offset(layout: str, x_offset: float, offset: float, mask: str) -> None:
    p = Offset(layout, mask, x_offset, offset)
    for activation in ACTIVATIONS.values():
        (dx,), (expected,) = p.found(activation, False), p.expected(activation, False)
        assert relative(dx, expected) <= 1e-6, activation


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("dy", "v"), [(0.0, 0.0), (1e6, 0.0), (0.0, 1e6), (1e6, 1e6)])
@pytest.mark.parametrize("x_offset", [0.0, 1e6])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "(N, C)"])
def test_second_gradients_at_every_offset(
    layout: str, x_offset: float, dy: float, v: float, mask: str
) -> None:
    p = Offset(layout, mask, x_offset, dy, v)
    for found, expected in zip(p.found(None, True), p.expected(None, True), strict=True):
        assert relative(found, expected) <= 1e-6


def test_a_float32_gradient_of_torch_loses_these_digits() -> None:
    p = Offset("NCHW", "none", 0, 1e6)
    found = gradients(
        lambda *t: torch.nn.functional.batch_norm(t[0], None, None, *t[1:], training=True),
        (p.x, p.weight, p.bias, p.dy), False)  # fmt: skip
    assert relative(found[0], p.expected(None, False)[0]) > 1e-3


@pytest.mark.parametrize("layout", ["NCHW", "(N, C)"])
@pytest.mark.parametrize("activation", ["relu", ("leaky_relu", 0.25)])
@pytest.mark.parametrize("flushed_in", ["neither", "forward", "backward", "both"])
def test_sides_where_subnormal_numbers_are_flushed(layout: str, activation: Any, flushed_in: str) -> None:
    """pre is the difference of two small normal numbers, and its sign survives in y."""
    x = Offset(layout, "none", 0, 0).x.requires_grad_()
    scale, bias = torch.full((3,), 3e-38), torch.tensor([1.5e-38, -1.5e-38, 1e-39])
    try:
        torch.set_flush_denormal(flushed_in in ("forward", "both"))
        y = xt.batch_norm(x, None, None, scale, bias.requires_grad_(), training=True, activation=activation)
        torch.set_flush_denormal(flushed_in in ("backward", "both"))
        (dbias,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    finally:
        torch.set_flush_denormal(False)
    slope = 0.0 if activation == "relu" else 0.25
    above = (y.detach().double() > 0).sum([0, *range(2, y.dim())])
    assert torch.equal(dbias, (above + slope * (y.numel() // 3 - above)).float())


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sides_of_gradients_that_the_formulas_compute(dtype: torch.dtype, batched: bool) -> None:
    """The forward pass was the kernels': the formulas, in double, would have other sides."""
    x = torch.ones(8, 2, 4, dtype=dtype)
    x[::2] = -1
    x.requires_grad_()
    bias = torch.tensor([1 / (1 + 1e-5) ** 0.5 + 1e-9, 0.0], dtype=torch.float64)
    y = xt.batch_norm(x, None, None, None, bias, training=True, activation="relu")
    assert (y[::2] == 0).all()
    dy = torch.ones_like(y)
    if batched:
        (dx,) = torch.autograd.grad(y, x, torch.stack((dy, dy)), is_grads_batched=True)
        dx = dx[0]
    else:
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    assert torch.allclose(dx[:, 0].double(), torch.where(x[:, 0] > 0, 5e-6, -5e-6).double(), rtol=1e-2)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_tensor_of_shape_0_is_an_empty_batch_as_in_torch(training: bool, affine: bool) -> None:
    found = []
    for run in (torch.nn.functional.batch_norm, xt.batch_norm):
        x = torch.empty(0, requires_grad=True)
        parameters = [torch.ones(3, requires_grad=True) for _ in range(2)] if affine else [None, None]
        mean, var = torch.ones(3), torch.ones(3)
        y = run(x, mean, var, *parameters, training=training)
        y.sum().backward()
        assert torch.equal(mean, var)
        found.append((y.shape, x.grad.shape, [None if p is None else p.grad.tolist() for p in parameters]))  # type: ignore[union-attr]
    assert found[0] == found[1]


def test_a_variance_that_overflows_is_nan_in_the_formulas_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composed, "_precision", lambda x, *_: x.dtype)
    monkeypatch.setattr("xhat.torch.functional.engine_for", lambda *_: None)
    assert xt.batch_norm(torch.randn(9, 2) * 1e25, None, None, training=True).isnan().all()
