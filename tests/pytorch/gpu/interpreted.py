"""A program for test_triton_numbers: batch norms by the Triton kernels under Triton's interpreter, on CPU tensors.

Prints one JSON object a line: the case, and its errors against the definition in float64. Triton reads the environment
when it is imported, so that this is a process of its own.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"TRITON_INTERPRET": "1", "XHAT_TRITON": "1"}
sys.path.insert(0, str(Path(__file__).parents[1]))

import definition
import torch
import torch.nn.functional as F
from torch import Tensor

import xhat.torch as xt
from xhat.torch import engines
from xhat.torch.gpu import tiles

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Case(NamedTuple):
    """shape of (N, C, ...); layout NCHW or NHWC; offset of x, and of dy, in standard deviations; the call's options."""

    shape: tuple[int, ...]
    layout: str = "NCHW"
    dtype: str = "float32"
    offset: float = 0.0
    dy_offset: float = 0.0
    activation: Any = None
    residual: bool = False
    mask: str = "none"
    correction: int = 0
    affine: bool = True
    split: bool = False  # whether the channels are to be summed in several splits, not in one launch

    @property
    def name(self) -> str:
        """The case in words."""
        options = [
            f"{k}={v}" for k, v in self._asdict().items() if k != "shape" and v != self._field_defaults[k]
        ]
        return " ".join([str(self.shape), *options])


def cases() -> list[Case]:
    """Every layout, dtype, offset and option; sizes that are prime, and 1; last tiles that are not full."""
    small, odd = (4, 8, 6, 4), (3, 5, 7, 3)
    found = []
    for layout in ("NCHW", "NHWC"):
        for split in (False, True):
            found += [Case(small, layout, offset=o, split=split) for o in (0.0, 1e4, 1e6)]
            found += [
                Case(small, layout, dtype, offset=1.0, activation="relu", split=split)
                for dtype in ("float64", "float16", "bfloat16")
            ]
            found += [
                Case(small, layout, activation=("leaky_relu", 0.1), residual=True, split=split),
                Case(small, layout, activation="silu", residual=True, correction=1, split=split),
                Case(odd, layout, activation="silu", affine=False, split=split),
                Case(small, layout, dy_offset=1e4, split=split),
            ]
        found += [Case(odd, layout, mask=mask, activation=a, offset=1e4)
                  for mask, a in (("bool", "silu"), ("weights", "relu"), ("padding", "silu"))]  # fmt: skip
        found += [
            Case(odd, layout, mask="bool", activation="silu", residual=True),
            Case((17, 1, 1, 13), layout, split=True),
        ]
    return [*found, Case((33, 5)), Case((33, 5), split=True), Case((2, 1)), Case((1, 3, 5), offset=1e4)]


def inputs(case: Case) -> dict[str, Tensor | None]:
    """x, weight, bias, residual, mask and dy of a case."""
    g = definition.generator(case.name)
    memory = torch.channels_last if case.layout == "NHWC" else torch.contiguous_format

    def normal(offset: float = 0.0) -> Tensor:
        made = torch.randn(case.shape, generator=g, dtype=torch.float64) + offset
        return made.to(DTYPES[case.dtype]).contiguous(memory_format=memory)

    channels = case.shape[1]
    mask = None
    x = normal(case.offset)
    if case.mask != "none":
        mask = torch.rand((case.shape[0], 1, *case.shape[2:]), generator=g) > 0.3
        if case.mask == "padding":
            x = torch.where(mask, x, torch.nan).contiguous(memory_format=memory)
        if case.mask == "weights":
            mask = mask * torch.rand(mask.shape, generator=g)
    affine = (
        [torch.rand(channels, generator=g) + 0.5, torch.randn(channels, generator=g)]
        if case.affine
        else [None] * 2
    )
    dy = normal(case.dy_offset)
    if case.mask == "padding":
        dy = dy * mask
    return dict(
        x=x, weight=affine[0], bias=affine[1], residual=normal() if case.residual else None, mask=mask, dy=dy
    )


def differentiated(function: Any, case: Case, t: dict[str, Tensor | None], wide: bool) -> list[Tensor]:
    """y, and the gradients of the inputs that require one."""
    leaves = {name: None if v is None else (v.double() if wide else v).detach().clone().requires_grad_()
              for name, v in t.items() if name not in ("mask", "dy")}  # fmt: skip
    y = function(case, mask=t["mask"], **leaves)
    dy = t["dy"]
    assert dy is not None
    found = torch.autograd.grad(y, [v for v in leaves.values() if v is not None], dy.to(y.dtype))
    return [y.detach(), *found]


def ours(case: Case, x: Tensor, weight: Any, bias: Any, residual: Any, mask: Any) -> Tensor:
    return xt.batch_norm(x, None, None, weight, bias, True, residual=residual, mask=mask, correction=case.correction,
                         activation=case.activation)  # fmt: skip


def exact(case: Case, x: Tensor, weight: Any, bias: Any, residual: Any, mask: Any) -> Tensor:
    """By the definition, in operations of torch in float64."""
    axes, column = [a for a in range(x.dim()) if a != 1], (1, -1, *[1] * (x.dim() - 2))
    w = torch.ones_like(x[:, :1]) if mask is None else mask.double().expand(x[:, :1].shape)
    x = torch.where(w > 0, x, 0.0) if case.mask == "padding" else x
    mu = (w * x).sum(axes, keepdim=True) / w.sum()
    var = (w * (x - mu) ** 2).sum(axes, keepdim=True) / (w.sum() - case.correction)
    pre = (x - mu) / (var + 1e-5).sqrt()
    if weight is not None:
        pre = pre * weight.reshape(column) + bias.reshape(column)
    pre = pre if residual is None else pre + residual
    act: Any = {None: lambda v: v, "relu": F.relu, "silu": F.silu}.get(
        case.activation, lambda v: F.leaky_relu(v, 0.1)
    )
    y: Tensor = act(pre)
    return y


def errors(case: Case) -> dict[str, float]:
    """The largest error of y, and the relative errors of the gradients, over elements that are not at relu's corner."""
    tiles.WHOLE = 0 if case.split else 4096
    tiles.VECTORS = 4 if case.split else 128
    t = inputs(case)
    found = differentiated(ours, case, t, wide=False)
    again = differentiated(ours, case, t, wide=False)
    wanted = differentiated(exact, case, t, wide=True)
    report = {
        "same bits": float(
            all(torch.equal(a, b) or case.mask == "padding" for a, b in zip(found, again, strict=True))
        )
    }
    kept = (
        t["mask"].expand(case.shape) if case.mask == "padding" else torch.ones(case.shape, dtype=torch.bool)
    )  # type: ignore[union-attr]
    names = (
        ["y", "dx"] + (["dweight", "dbias"] if case.affine else []) + (["dresidual"] if case.residual else [])
    )
    for name, a, b in zip(names, found, wanted, strict=True):
        difference = a.double() - b
        if a.shape == case.shape:
            difference, b = difference[kept], b[kept]
        size = 1.0 if name == "y" else max(float(b.norm()), 1e-3 * float(t["dy"].double().norm()))  # type: ignore[union-attr]
        report[name] = float(difference.abs().max() if name == "y" else difference.norm()) / size
    return report


def second_derivatives() -> dict[str, float]:
    """The gradient of |dx|^2 with respect to x, weight and dy, in float64, beside that of the definition."""
    case = Case((4, 3, 2, 4), dtype="float64", offset=1.0)
    t = inputs(case)
    found = []
    for function in (ours, exact):
        x, weight, bias, dy = (
            t[name].double().clone().requires_grad_() for name in ("x", "weight", "bias", "dy")
        )  # type: ignore[union-attr]
        y = function(case, x=x, weight=weight, bias=bias, residual=None, mask=None)
        (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
        found.append(torch.autograd.grad((dx**2).sum(), (x, weight, dy)))
    names = ("by x", "by weight", "by dy")
    return {name: float((a - b).norm() / b.norm()) for name, a, b in zip(names, *found, strict=True)}


def graphs() -> dict[str, float]:
    """Whether a compiled layer gives the bits of the eager one, in training and with its gradient."""
    case = Case((4, 8, 6, 4), activation="relu")
    t = inputs(case)
    eager = differentiated(ours, case, t, wide=False)
    compiled = differentiated(torch.compile(ours, backend="aot_eager", fullgraph=True), case, t, wide=False)
    return {"same bits": float(all(map(torch.equal, eager, compiled)))}


if __name__ == "__main__":
    from interpreted_layers import layers, moved, moved_once, opchecks, variants

    assert engines.engine_of(torch.zeros(2, 3)) == "triton"
    for case in cases():
        print(json.dumps({"case": case.name, "dtype": case.dtype, "errors": errors(case)}), flush=True)
    for other in (second_derivatives, graphs, layers, moved, variants, moved_once, opchecks):
        print(json.dumps({"case": other.__name__, "dtype": "", "errors": other()}), flush=True)
