"""The equations as devices without kernels compute them: torch's operations, in float32, on this machine's memory.

A device proper is not at hand in every test run; the arithmetic is the same wherever float32 is.
"""

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from definition import (
    ACTIVATIONS,
    LAYOUTS,
    Problem,
    batch,
    definition,
    generator,
    numbers,
    option_sets,
    problem,
    relative,
)
from torch import Tensor
from torch.func import vmap

import xhat.torch as xt
from xhat.torch import composed

F32 = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def _as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 for all that is not float64, and no kernels."""

    def precision(x: Tensor, *others: Tensor | None) -> torch.dtype:
        wide = any(t is not None and t.dtype == torch.float64 for t in (x, *others))
        return torch.float64 if wide else torch.float32

    monkeypatch.setattr(composed, "_precision", precision)
    monkeypatch.setattr("xhat.torch.functional.plain", lambda *_: False)


def run(p: Problem, training: bool, dy: Tensor, **options: Any) -> dict[str, Tensor]:
    """y, the gradients, and the running statistics with momentum 1."""
    p = p.leaves()
    mean, var = torch.linspace(-1, 1, p.x.shape[1]), torch.linspace(0.5, 2, p.x.shape[1])
    y = xt.batch_norm(
        p.x, mean, var, p.weight, p.bias, training, 1.0, 1e-3, residual=p.residual, mask=p.mask, **options
    )
    names = [n for n, t in zip(("dx", "dweight", "dbias", "dresidual"), p, strict=False) if t is not None]
    return {
        "y": y,
        "mean": mean,
        "var": var,
        **dict(zip(names, torch.autograd.grad(y, p.asked, dy), strict=True)),
    }


def expected(p: Problem, training: bool, dy: Tensor, **options: Any) -> dict[str, Tensor]:
    """The same by the definition, in float64."""
    p = Problem(*(None if t is None else t.detach().double() for t in p)).leaves()  # type: ignore[arg-type]
    mean, var = torch.linspace(-1, 1, p.x.shape[1]), torch.linspace(0.5, 2, p.x.shape[1])
    d = definition(
        p if training else p._replace(mask=None), None if training else (mean, var), eps=1e-3, **options
    )
    if training:
        mean, var = d.mean, d.var * (d.m - options.get("correction", 0)) / (d.m - 1)
    names = [n for n, t in zip(("dx", "dweight", "dbias", "dresidual"), p, strict=False) if t is not None]
    gradients = torch.autograd.grad(d.y, p.asked, dy.double())
    return {"y": d.y, "mean": mean, "var": var, **dict(zip(names, gradients, strict=True))}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "(N, C)"])
def test_every_option(layout: str, training: bool) -> None:
    x = batch(layout, dtype=torch.float32)
    dy = torch.randn(x.shape, generator=generator("dy"))
    for options in option_sets(training):
        p = problem(x, options.pop("affine"), options.pop("residual"), options.pop("mask"))
        options["activation"] = ACTIVATIONS[options["activation"]]
        got, wanted = run(p, training, dy, **options), expected(p, training, dy, **options)
        errors = {name: relative(got[name], value) for name, value in wanted.items()}
        assert max(errors.values()) < 10 * F32, (options, errors)


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_offset_costs_no_digits(layout: str, offset: float) -> None:
    """Values are taken relative to a rough mean first."""
    x = batch(layout) + offset
    x = torch.empty_strided(x.shape, x.stride()).copy_(x) if layout != "expanded" else x.float()
    dy = torch.randn(x.shape, generator=generator("dy"))
    got, wanted = run(Problem(x), True, dy), expected(Problem(x), True, dy)
    assert oracle.worst(numbers(got["y"]), numbers(wanted["y"])) < 20 * F32
    assert relative(got["dx"], wanted["dx"]) < 20 * F32
    assert relative(got["var"], wanted["var"]) < 20 * F32


def test_sixteen_bits_are_computed_in_float32() -> None:
    x = batch("NCHW", dtype=torch.bfloat16)
    dy = torch.randn(x.shape, generator=generator("dy")).bfloat16()
    got, wanted = (
        run(problem(x, dtype=torch.float32), True, dy),
        expected(problem(x, dtype=torch.float32), True, dy),
    )
    assert got["y"].dtype == torch.bfloat16 and got["var"].dtype == torch.float32
    assert relative(got["y"], wanted["y"]) < 2**-8 and relative(got["dx"], wanted["dx"]) < 2**-8
    assert (
        relative(got["dweight"], wanted["dweight"]) < 10 * F32
        and relative(got["var"], wanted["var"]) < 10 * F32
    )


def test_an_ensemble_on_such_a_device() -> None:
    x = torch.stack((batch("NCHW", dtype=torch.float32), batch("NCHW", "b", torch.float32)))
    y = vmap(lambda a: xt.batch_norm(a, None, None, training=True))(x)
    for i in range(2):
        assert relative(y[i], definition(Problem(x[i])).y) < 10 * F32


def test_a_layer_learns_there() -> None:
    """Counts and averages, as everywhere."""
    layer = xt.BatchNorm2d(5, momentum=None, nonfinite="skip")
    means = []
    for i in range(3):
        x = batch("NCHW", f"step {i}", torch.float32)
        layer(x)
        means.append(x.double().mean((0, 2, 3)))
    assert layer.num_batches_tracked == 3
    assert relative(layer.running_mean, torch.stack(means).mean(0)) < 10 * F32  # type: ignore[arg-type]
