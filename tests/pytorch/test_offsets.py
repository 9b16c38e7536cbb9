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
        monkeypatch.setattr("xhat.torch.functional.plain", lambda *_: False)


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
