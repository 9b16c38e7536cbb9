"""The equations as devices without kernels compute them: torch's operations, in float32, on this machine's memory.

A device proper is not at hand in every test run; the arithmetic is the same wherever float32 is.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from beside import WARNS
from definition import (
    ACTIVATIONS,
    LAYOUTS,
    MASKS,
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
from torch.func import grad, jvp, vmap

import xhat.torch as xt
from xhat.torch import composed, operators

F32 = float(np.finfo(np.float32).eps)


@pytest.fixture(autouse=True)
def _as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 for all that is not float64, and no kernels."""

    def precision(x: Tensor, *others: Tensor | None) -> torch.dtype:
        wide = any(t is not None and t.dtype == torch.float64 for t in (x, *others))
        return torch.float64 if wide else torch.float32

    monkeypatch.setattr(composed, "_precision", precision)
    monkeypatch.setattr("xhat.torch.functional.engine_for", lambda *_: None)


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


Loss = Callable[[Tensor, Tensor], Tensor]


def _by_backward(f: Loss, x: Tensor, dy: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(f(leaf, dy), leaf)[0]


def _compiled(f: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")


def _with_a_tangent(f: Loss, x: Tensor, dy: Tensor) -> Tensor:
    return jvp(lambda a: grad(f)(a, dy), (x,), (torch.zeros_like(x),))[0]


WAYS: dict[str, Callable[[Loss, Tensor, Tensor], Tensor]] = {
    "backward": _by_backward,
    "grad": lambda f, x, dy: grad(f)(x, dy),
    "vmap of grad": lambda f, x, dy: vmap(grad(f), (None, 0))(x, dy.expand(2, *dy.shape))[1],
    "grad of vmap": lambda f, x, dy: grad(lambda a: vmap(f, (None, 0))(a, dy[None]).sum())(x),
    "compile": lambda f, x, dy: _by_backward(_compiled(f), x, dy),
    "jvp of grad": _with_a_tangent,
    "compile of grad": lambda f, x, dy: _compiled(grad(f))(x, dy),
    "compile of vmap of grad": lambda f, x, dy: _compiled(vmap(grad(f)))(x[None], dy[None])[0],
}


@WARNS
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # by torch.compile itself
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("offset", [0.0, 1e2, 1e6])
@pytest.mark.parametrize("way", WAYS)
def test_an_offset_of_dy_costs_no_digits(
    way: str, offset: float, mask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dy is normal + w offset, of which dx takes the first alone."""
    monkeypatch.setattr(operators, "batch_norm", composed.batch_norm)  # what a graph records elsewhere
    if mask == "weights" and way in list(WAYS)[5:]:
        pytest.skip("a mask of fractions costs digits there")
    g = generator("an offset of dy")
    x, normal, w = (torch.randn(6, 3, 5, 7, generator=g), torch.randn(6, 3, 5, 7, generator=g),
                    torch.rand(6, 1, 5, 7, generator=g))  # fmt: skip
    w = torch.ones(1, 1, 1, 1) if mask == "none" else (w > 0.3).float() if mask == "bool" else w
    given = None if mask == "none" else w
    dy = normal * (w > 0) + offset * w
    wide = x.double().requires_grad_()
    y = definition(Problem(wide, mask=None if given is None else w.double())).y
    (wanted,) = torch.autograd.grad(y, wide, dy.double() - offset * w.double())
    found = WAYS[way](
        lambda a, b: (xt.batch_norm(a, None, None, training=True, eps=1e-5, mask=given) * b).sum(), x, dy
    )
    assert relative(found, wanted) < 10 * F32


@pytest.mark.parametrize("way", ["backward", "grad", "grad of vmap"])
def test_the_gradient_of_a_mask(way: str) -> None:
    """The mean that x's gradient loses is part of the mask's."""
    g = generator("a mask's gradient")
    x, dy = torch.randn(6, 3, 5, generator=g), torch.randn(6, 3, 5, generator=g) + 3
    w = torch.rand(6, 1, 5, generator=g) + 0.1
    wide = w.double().requires_grad_()
    (wanted,) = torch.autograd.grad(definition(Problem(x.double(), mask=wide)).y, wide, dy.double())
    found = WAYS[way](
        lambda a, b: (xt.batch_norm(x, None, None, training=True, eps=1e-5, mask=a) * b).sum(), w, dy
    )
    assert relative(found, wanted) < 20 * F32


def test_three_values_with_weights() -> None:
    x = torch.tensor([[-1.0], [0.0], [2.0]], requires_grad=True)
    w = torch.tensor([0.3, 0.7, 1.1])
    dy = (1e6 * w + torch.tensor([1, -2, 0.5]))[:, None]
    wide = x.detach().double().requires_grad_()
    exact = definition(Problem(wide, mask=w.double()[:, None])).y
    (wanted,) = torch.autograd.grad(exact, wide, dy.double())
    y = xt.batch_norm(x, None, None, training=True, mask=w[:, None])
    assert relative(torch.autograd.grad(y, x, dy)[0], wanted) < 10 * F32


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
