"""Verification on the device: against float64, in memory that held NaN before, and with equal bits: run after run, in a
CUDA graph, and compiled.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.cases import Case, Tensors, made
from benchmarks.gpu.ways import WAYS, backward_of, exact, leaves, ours

__all__ = ["verify"]

# y absolute; dx and dresidual, then the parameters' gradients, relative.
BOUNDS = {"float32": (4e-6, 2e-6, 2e-6), "float16": (0.02, 2e-3, 2e-5), "bfloat16": (0.06, 6e-3, 2e-5)}


def _poison(case: Case, device: str) -> None:
    """NaN in the memory that the allocator gives out next."""
    for _ in range(3):
        torch.full((case.nbytes // 4,), torch.nan, device=device)


def _repeated(run: Callable[[], tuple[Tensor, ...]], case: Case, device: str) -> list[tuple[Tensor, ...]]:
    found = []
    for _ in range(3):
        _poison(case, device)
        found.append(run())
    return found


def _captured(run: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The results of a CUDA graph of this call, replayed."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    graph.replay()
    torch.cuda.synchronize()
    return found


def _both(forward: Callable[[Tensors], Tensor], t: Tensors) -> tuple[Tensor, ...]:
    """y and the gradients of one step."""
    t, wanted = leaves(t)
    y = forward(t)
    return y.detach(), *torch.autograd.grad(y, wanted, t.dy)


def _compiled(case: Case, t: Tensors) -> tuple[Tensor, ...]:
    """The results of a compiled call, whose graph has xhat's operators."""
    torch.compiler.reset()
    run = torch.compile(ours(case), backend="aot_eager", fullgraph=True, dynamic=False)
    return _both(lambda t: run(*t[:4]), t)


def verify(case: Case, device: str) -> list[str]:
    """What is wrong with xhat's results; an empty list if nothing is."""
    t = made(case, device)
    forward = WAYS["xhat"](case)
    backward = backward_of(forward, t)
    y, pre, gradients = exact(case, t)
    runs = _repeated(lambda: (forward(t).detach(), *backward()), case, device)
    wrong = []
    if any(not torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True)):
        wrong.append("two runs differ")
    others = {"a graph's replay": _captured(lambda: _both(forward, t))} if device == "cuda" else {}
    if case.kind == "bn+add+relu":
        others["the compiled call"] = _compiled(case, t)
    for name, other in others.items():
        if any(not torch.equal(a, b) for a, b in zip(runs[0], other, strict=True)):
            wrong.append(f"{name} differs")
    on_y, on_x, on_parameters = BOUNDS[case.dtype]
    beside_corner = pre.abs() > 1e-4 if "relu" in case.kind else torch.ones_like(pre, dtype=torch.bool)
    error = float((runs[0][0].double() - y)[beside_corner].abs().max())
    wrong += [f"y {error:.1e}"] if not error < on_y else []
    for name, found, wanted in zip(
        ("dx", "dweight", "dbias", "dresidual"), runs[0][1:], gradients, strict=False
    ):
        difference = (found.double() - wanted) * (beside_corner if found.shape == y.shape else 1)
        relative = float(difference.norm() / wanted.norm())
        wrong += (
            [f"{name} {relative:.1e}"]
            if not relative < (on_x if found.shape == y.shape else on_parameters)
            else []
        )
    return wrong
