"""Layers by the kernels under the interpreter, for `interpreted`: running statistics, and the other layers."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.torch import engines, functional, recorder
from xhat.torch.gpu import tiles
from xhat.torch.inputs import Inputs
from xhat.torch.running_stats import Running

__all__ = ["layers", "moved", "moved_once", "variants"]


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
