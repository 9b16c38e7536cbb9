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
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.torch import engines, functional, recorder
from xhat.torch.gpu import tiles
from xhat.torch.inputs import Inputs
from xhat.torch.running_stats import Running

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


def layers() -> dict[str, float]:
    """Running statistics after two batches, beside torch's layer in float64, and an evaluation by them."""
    found: dict[str, float] = {}
    for momentum, dtype, whole in (
        (0.1, torch.float32, True),
        (0.2, torch.float64, False),
        (None, torch.float64, True),
        (None, torch.float32, False),
    ):
        tiles.WHOLE = 4096 if whole else 0
        name = f"momentum {momentum}, {dtype}, {'one launch' if whole else 'three launches'}"
        layer, stock = (kind(8, momentum=momentum) for kind in (xt.BatchNorm2d, torch.nn.BatchNorm2d))
        stock.double()
        layer.running_mean, layer.running_var = (t.to(dtype) for t in (layer.running_mean, layer.running_var))
        for seed in (1, 2):
            x = torch.randn(4, 8, 6, 4, generator=torch.Generator().manual_seed(seed))
            layer(x)
            stock(x.double())
        assert layer.num_batches_tracked == stock.num_batches_tracked == 2
        for statistic in ("running_mean", "running_var"):
            wanted = getattr(stock, statistic)
            found[f"{statistic}, {name}"] = float((getattr(layer, statistic) - wanted).norm() / wanted.norm())
        y, wanted = layer.eval()(x), stock.eval()(x.double())
        found[f"evaluation, {name}"] = float((y - wanted).norm().detach() / wanted.norm().detach())
    return found


def moved() -> dict[str, float]:
    """Whether running statistics that move in the pass have the bits of those that `track` moves after it.

    With every correction, statistics of two dtypes, and a mask.
    """
    found = {}
    x = torch.randn(4, 8, 6, 4, generator=torch.Generator().manual_seed(3))
    mask = torch.rand(4, 1, 6, 4, generator=torch.Generator().manual_seed(4)) > 0.3
    for correction, running_correction, whole, given in (
        (0, 1, True, None),
        (1, 0, False, None),
        (1, 1, False, mask),
    ):
        tiles.WHOLE = 4096 if whole else 0
        options = dict(correction=correction, running_correction=running_correction)
        pairs = [(torch.full((8,), 0.5), torch.full((8,), 2.0, dtype=torch.float64)) for _ in range(2)]
        xt.batch_norm(x, *pairs[0], training=True, mask=given, **options)
        _, batch = functional.normalized(
            Inputs(x, None, None, None, given, None, None), 1e-5, correction, None
        )
        functional.follow(Running(*pairs[1], None, None), batch, 0.1, *options.values(), "propagate")
        found[str(options)] = float(all(map(torch.equal, *pairs)) and pairs[0][0][0] != 0.5)
    return found


def variants() -> dict[str, float]:
    """The other layers, beside themselves on the CPU's kernels: batch renormalization, groups, adapted evaluation.

    And moments recorded for `recalibrate`, which stay tensors until the last batch.
    """
    x = torch.randn(4, 8, 3, 2, generator=torch.Generator().manual_seed(5))
    found: dict[str, list[list[Tensor]]] = {}
    recorder.on_a_device = lambda value: isinstance(value, Tensor)  # type: ignore[attr-defined]
    for engine in ("triton", "kernels"):
        engines.switched_on = engine == "triton"
        assert engines.engine_of(x) == engine
        for layer in (xt.BatchRenorm2d(8, warmup=(0, 0)), xt.GhostBatchNorm2d(8, groups=2)):
            found.setdefault(type(layer).__name__, []).append([layer(x), layer(x * 2), *layer.buffers()])
        with xt.adapt(layer.eval(), mode="pooled"):
            found.setdefault("adapt", []).append([layer(x), layer(x)])
        recorded = recorder.Recorder("layer", xt.BatchNorm2d(8))
        with recorded.recording():
            recorded.layer(x)
            recorded.layer(x + 3)
            assert all(isinstance(t, Tensor) for t in recorded._moments)
        found.setdefault("recalibrate", []).append([torch.from_numpy(t) for t in recorded.moments])
    engines.switched_on = True
    distances = {
        name: torch.stack(
            [((a - b).abs().max() / b.abs().max()).detach() for a, b in zip(*pair, strict=True)]
        )
        for name, pair in found.items()
    }
    return {name: float(d.max()) for name, d in distances.items()}  # NaN, if there is one


def moved_once() -> dict[str, float]:
    """Whether a pass that is differentiated twice moves the statistics once, and one that is repeated not at all."""
    x = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(3)).requires_grad_()
    layer = xt.BatchNorm1d(3, activation="silu")
    y = checkpoint(layer, x, use_reentrant=False)
    before = [t.clone() for t in layer.buffers()]
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.autograd.grad(dx.square().sum(), x)
    return {"once": float(all(map(torch.equal, before, layer.buffers())) and layer.num_batches_tracked == 1)}


if __name__ == "__main__":
    assert engines.engine_of(torch.zeros(2, 3)) == "triton"
    for case in cases():
        print(json.dumps({"case": case.name, "dtype": case.dtype, "errors": errors(case)}), flush=True)
    for other in (second_derivatives, graphs, layers, moved, variants, moved_once):
        print(json.dumps({"case": other.__name__, "dtype": "", "errors": other()}), flush=True)
