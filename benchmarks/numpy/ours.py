"""xhat as a contestant: results preallocated (`out=`), contexts made once for the backward pass alone.

Nothing but calls of the public functions lives here.
"""

from typing import Any

import numpy as np

import xhat
from benchmarks.harness.contest import Contestant
from benchmarks.harness.problem import EPS, Problem, Variant

__all__ = ["TOLERANCE", "contestant"]

TOLERANCE = 2e-6


def contestant(problem: Problem, variant: Variant | None = None, threads: int | None = None) -> Contestant:
    """xhat on this problem, with what the variant fuses."""
    variant = variant or Variant()
    y, dx, dresidual = (np.empty_like(problem.x) for _ in range(3))
    results = (dx, dresidual) if variant.residual else dx
    options: dict[str, Any] = {"axis": problem.case.axis, "eps": EPS, "activation": variant.activation}
    if variant.residual:
        options["residual"] = problem.residual
    x, dy, gamma, beta = problem.x, problem.dy, problem.gamma, problem.beta
    context = xhat.batch_norm(x, gamma, beta, out=y, **options)[1]

    def forward() -> tuple[Any, ...]:
        return (xhat.batch_norm(x, gamma, beta, out=y, **options)[0],)

    def backward() -> tuple[Any, ...]:
        return _present(xhat.batch_norm_backward(dy, context, out=results))

    def both() -> tuple[Any, ...]:
        result, made = xhat.batch_norm(x, gamma, beta, out=y, **options)
        return (result, *_present(xhat.batch_norm_backward(dy, made, out=results)))

    calls = {"forward": forward, "backward": backward, "both": both}
    outputs = {"forward": (y,), "backward": (dx, dresidual), "both": (y, dx, dresidual)}
    return Contestant("xhat", calls, outputs=outputs, tolerance=TOLERANCE, threads=threads)


def _present(grads: Any) -> tuple[Any, ...]:
    found = (grads.dx, grads.dgamma, grads.dbeta)
    return found if grads.dresidual is None else (*found, grads.dresidual)
