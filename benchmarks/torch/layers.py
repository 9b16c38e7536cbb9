"""A layer of torch and one of xhat.torch in the same race: forward and backward through autograd, verified first.

torch                torch.nn.BatchNorm*d, and what follows it in place, as published networks are written
torch, out of place  the same with new tensors for the sum and the ReLU
xhat                 xhat.torch.BatchNorm*d with activation and residual

All update their running statistics. Gradients are taken of x, weight, bias and residual for a dy that is given.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import xhat.torch as xt
from benchmarks.harness.contest import Contestant, Entry, race, verify
from benchmarks.harness.problem import EPS, Problem, exact
from benchmarks.harness.rows import Row
from benchmarks.harness.tensors import from_tensor, tensor_on
from benchmarks.torch.cases import VARIANTS, Layer

__all__ = ["OURS", "contestants", "measure", "saved"]

OURS = 2e-6  # the tolerance of our float32 results, as in the other benchmark
Forward = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def _kind(package: Any, shape: tuple[int, ...]) -> Any:
    return {2: package.BatchNorm1d, 3: package.BatchNorm1d, 4: package.BatchNorm2d}[len(shape)]


def _module(package: Any, problem: Problem, **options: Any) -> torch.nn.Module:
    """The layer of a package with the problem's parameters, in training mode."""
    module: torch.nn.Module = _kind(package, problem.case.shape)(problem.case.shape[1], eps=EPS, **options)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(problem.gamma))
        module.bias.copy_(torch.from_numpy(problem.beta))
    return module


def _eager(bn: torch.nn.Module, relu: bool, in_place: bool) -> Forward:
    """What a network of torch does: normalize, add, ReLU."""

    def forward(x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        y = bn(x)
        if residual is not None:
            y = y.add_(residual) if in_place else y + residual
        return torch.nn.functional.relu(y, inplace=in_place) if relu else y

    return forward


def _forwards(layer: Layer, problem: Problem) -> dict[str, tuple[torch.nn.Module, Forward]]:
    """Module and forward of each contestant."""
    relu = layer.variant.activation == "relu"
    found = {}
    theirs, ours = _module(torch.nn, problem), _module(xt, problem, activation=layer.variant.activation)
    found["torch"] = theirs, _eager(theirs, relu, in_place=True)
    if relu:
        found["torch, out of place"] = theirs, _eager(theirs, relu, in_place=False)
    found["xhat"] = ours, ours.forward
    return found


def _trained(module: torch.nn.Module, forward: Forward, layer: Layer, problem: Problem) -> Callable[[], Any]:
    """y and the gradients that autograd finds through one forward."""
    layout = layer.case.layout
    x, dy, residual = (tensor_on(a, layout) for a in (problem.x, problem.dy, problem.residual))
    x = x.detach().requires_grad_()
    added = residual.detach().requires_grad_() if layer.variant.residual else None
    leaves = [x, module.weight, module.bias, *([] if added is None else [added])]

    def both() -> tuple[Any, ...]:
        y = forward(x, added)
        return (y, *torch.autograd.grad(y, leaves, dy))

    return both


def contestants(layer: Layer, problem: Problem) -> list[Contestant]:
    """Everyone on this layer."""
    found = []
    for name, (module, forward) in _forwards(layer, problem).items():
        calls = {"both": _trained(module, forward, layer, problem)}
        tolerance = {"tolerance": OURS} if name == "xhat" else {}
        found.append(Contestant(name, calls, lambda t: from_tensor(t, layer.case.layout), **tolerance))
    return found


def measure(layer: Layer, memory: str, rounds: int) -> Iterator[Row]:
    """Verifies and times everyone on this layer."""
    problem = Problem.of(layer.case).away_from_kinks([v for v in VARIANTS if v.activation])
    truth, entries, errors = exact(problem, layer.variant), {}, {}
    for contestant in contestants(layer, problem):
        errors[contestant.name] = verify(contestant, "both", truth, layer.case.dtype)
        entries[contestant.name] = Entry(contestant.calls["both"])
    for name, timing in race(entries, rounds).items():
        yield _row(layer, memory, "both", name, timing, errors[name])


def _row(
    layer: Layer, memory: str, what: str, name: str, figures: tuple[float, float, float], error: float = 0.0
) -> Row:
    case = layer.case
    setting = {"layout": case.layout, "dtype": case.dtype, "variant": layer.variant.name, "memory": memory}
    return Row(case.name, what, name, case.nbytes, *figures, error, **setting)


def saved(layer: Layer, memory: str) -> Iterator[Row]:
    """MB that autograd keeps for the backward beyond x: tensors seen by its hooks, each storage once."""
    problem = Problem.of(layer.case)
    for name, (_, forward) in _forwards(layer, problem).items():
        x, residual = (tensor_on(a, layer.case.layout) for a in (problem.x, problem.residual))
        x, residual = (t.detach().requires_grad_() for t in (x, residual))
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = forward(x, residual if layer.variant.residual else None)
        megabytes = sum(n for place, n in kept.items() if place != x.untyped_storage().data_ptr()) / 1e6
        yield _row(layer, memory, "saved beyond x", name, (megabytes,) * 3)
        del y
