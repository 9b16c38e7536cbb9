"""Layers by the kernels under the interpreter, for `interpreted`: running statistics, and the other layers.

They have three channels of few elements: the interpreter takes its time for every channel.
"""

from unittest.mock import patch

import torch
from definition import Problem, definition, generator, relative
from test_library import OPTIONS, asked, gradient_arguments, tracked
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.torch import functional, recorder, running_stats
from xhat.torch.gpu import tiles
from xhat.torch.inputs import Inputs
from xhat.torch.running_stats import Following, Running

__all__ = ["layers", "moved", "moved_once", "opchecks", "variants"]

SHAPE = (4, 3, 3, 2)


def numbers(seed: str) -> Tensor:
    return torch.randn(SHAPE, generator=generator(seed))


def layers() -> dict[str, float]:
    """Running statistics after two batches, beside torch's layer in float64, and an evaluation by them."""
    found: dict[str, float] = {}
    for momentum, dtype, whole in (
        (0.2, torch.float64, False),
        (None, torch.float64, True),
        (None, torch.float32, False),
    ):
        tiles.WHOLE = 4096 if whole else 0
        name = f"momentum {momentum}, {dtype}, {'one launch' if whole else 'three launches'}"
        layer, stock = (kind(SHAPE[1], momentum=momentum) for kind in (xt.BatchNorm2d, torch.nn.BatchNorm2d))
        stock.double()
        layer.running_mean, layer.running_var = (t.to(dtype) for t in (layer.running_mean, layer.running_var))
        for seed in ("first", "second"):
            x = numbers(seed)
            layer(x)
            stock(x.double())
        assert layer.num_batches_tracked == stock.num_batches_tracked == 2
        for statistic in ("running_mean", "running_var"):
            found[f"{statistic}, {name}"] = relative(getattr(layer, statistic), getattr(stock, statistic))
        found[f"evaluation, {name}"] = relative(layer.eval()(x), stock.eval()(x.double()))
    return found


def moved() -> dict[str, dict[str, float]]:
    """Running statistics that move in the pass: whether they have the bits of those that `track` moves after it,
    and their errors.

    With every correction, statistics of two dtypes, and a mask.
    """
    found = {}
    x, mask = numbers("moved"), torch.rand(4, 1, 3, 2, generator=generator("mask")) > 0.3
    for correction, running_correction, whole, given in (
        (0, 1, True, None),
        (1, 0, False, None),
        (1, 1, False, mask),
    ):
        tiles.WHOLE = 4096 if whole else 0
        options = dict(correction=correction, running_correction=running_correction)
        pairs = [(torch.full((3,), 0.5), torch.full((3,), 2.0, dtype=torch.float64)) for _ in range(2)]
        xt.batch_norm(x, *pairs[0], training=True, mask=given, **options)
        _, batch = functional.normalized(
            Inputs(x, None, None, None, given, None, None), 1e-5, correction, None
        )
        following = Following(Running(*pairs[1], None, None), 0.1, *options.values(), "propagate")
        functional.follow(following, batch)
        exact = definition(Problem(x, mask=given), correction=running_correction)
        errors = [
            relative(got, 0.9 * old + 0.1 * new)
            for got, old, new in zip(pairs[0], (0.5, 2.0), (exact.mean, exact.var), strict=True)
        ]
        found[str(options)] = {
            "same bits": float(all(map(torch.equal, *pairs))),
            "mean": errors[0],
            "var": errors[1],
        }
    return found


def variants() -> dict[str, float]:
    """The errors of the other layers: batch renormalization, groups, adapted evaluation; of y, then of the buffers.

    And of moments recorded for `recalibrate`, which stay tensors until the last batch.
    """
    tiles.WHOLE = 4096
    recorder.on_a_device = lambda value: isinstance(value, Tensor)  # type: ignore[attr-defined]
    x = numbers("variants") + 1
    return {
        "BatchRenorm2d": batch_renorm(x),
        "GhostBatchNorm2d and adapt": groups(x),
        "recalibrate": recorded(x),
    }


def batch_renorm(x: Tensor) -> float:
    """By the formula of the paper, where r and d are clipped in some channels."""
    layer = xt.BatchRenorm2d(3, warmup=(0, 0), momentum=0.5, rmax=1.2)
    errors = []
    mean, var = torch.zeros(3).double(), torch.ones(3).double()
    for batch in (x, 2 * x):
        found = definition(Problem(batch))
        sigma = torch.sqrt(var + layer.eps)
        r = (torch.sqrt(found.var + layer.eps) / sigma).clamp(1 / 1.2, 1.2)
        d = ((found.mean - mean) / sigma).clamp(-5, 5)
        errors.append(relative(layer(batch), definition(Problem(batch, r, d)).y))
        mean, var = (mean + found.mean) / 2, (var + found.var * found.m / (found.m - 1)) / 2
    return max(*errors, relative(layer.running_mean, mean), relative(layer.running_var, var))


def groups(x: Tensor) -> float:
    """Group k has the samples k, k + 2, ...; running statistics follow the whole batch, and so does an adaptation."""
    layer, found = xt.GhostBatchNorm2d(3, groups=2), definition(Problem(x))
    y = torch.stack([definition(Problem(x[k::2])).y for k in range(2)], 1).flatten(0, 1)
    errors = [relative(layer(x), y)]
    mean, var = 0.1 * found.mean, 0.9 + 0.1 * found.var * found.m / (found.m - 1)
    errors += [relative(layer.running_mean, mean), relative(layer.running_var, var)]
    with xt.adapt(layer.eval(), prior=12):  # of which the four samples of x are a quarter of all
        merged = 0.75 * mean + 0.25 * found.mean
        spread = 0.75 * (var + (mean - merged) ** 2) + 0.25 * (found.var + (found.mean - merged) ** 2)
        errors.append(relative(layer(x), definition(Problem(x), (merged, spread)).y))
    return max(errors)


def recorded(x: Tensor) -> float:
    """m, mean and m2 of two batches."""
    record = recorder.Recorder("layer", xt.BatchNorm2d(3))
    with record.recording():
        record.layer(x)
        record.layer(x + 3)
        assert all(isinstance(t, Tensor) for t in record._moments)
    exact = definition(Problem(torch.cat((x, x + 3))))
    m, mean, m2 = map(torch.as_tensor, record.moments)
    assert float(m.flatten()[0]) == exact.m
    return max(relative(mean, exact.mean), relative(m2, exact.m * exact.var))


def moved_once() -> dict[str, float]:
    """Whether a pass that is differentiated twice moves the statistics once, and one that is repeated not at all."""
    x = torch.randn(4, 1, generator=generator("once")).requires_grad_()
    layer = xt.BatchNorm1d(1, activation="silu")
    y = checkpoint(layer, x, use_reentrant=False)
    before = [t.clone() for t in layer.buffers()]
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    torch.autograd.grad(dx.square().sum(), x)
    return {"once": float(all(map(torch.equal, before, layer.buffers())) and layer.num_batches_tracked == 1)}


def opchecks() -> dict[str, str]:
    """What torch.library.opcheck finds of each operator: its schema, its fake, its gradient, a graph of it."""
    tiles.WHOLE = 4096
    memory = torch.channels_last
    p, rest = asked(numbers("opcheck")[:2, :2].contiguous(memory_format=memory), OPTIONS[2])
    dy = numbers("dy")[:2, :2].contiguous(memory_format=memory)
    calls = {
        "batch_norm": (*p, *rest),
        "batch_norm_backward": gradient_arguments(p, rest, dy),
        "track": tracked(),
    }
    found = {}
    with patch.object(
        running_stats, "on_a_device", lambda t: isinstance(t, Tensor)
    ):  # so that a kernel tracks
        for name, arguments in calls.items():
            checks = torch.library.opcheck(getattr(torch.ops.xhat, name), arguments, raise_exception=False)
            found[name] = " ".join(sorted({str(result) for result in checks.values()}))
    return found
