"""`python -m benchmarks.exactness`: errors of float32 batch norm when the data lie far from zero.

Data of unit variance around an offset, or gradients around it (dx*); exact results from the same float32 values
in float64. y: largest absolute error; var: largest relative error; dx, dx*, dgamma, dbeta: relative error in the L2
norm. torch runs native_batch_norm and its backward; flax is its formula under jax.jit, with the gradient by jax.vjp;
xhat.jax, on which our layers of Flax and Equinox stand, is jitted likewise.
Fills docs/exactness.md, and a short table in README.md.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import xhat
from benchmarks.harness.cases import Case
from benchmarks.harness.problem import EPS, Array, Problem, exact
from benchmarks.harness.report import fill, markdown
from benchmarks.harness.rows import ROOT
from benchmarks.harness.tensors import from_tensor, tensor_on
from benchmarks.numpy.rivals import flax_formula, installed

__all__ = ["LIMITS", "Measured", "errors", "in_short", "main", "table"]

OFFSETS = (0.0, 1e2, 1e4, 1e6)
CASES = [
    Case("", (32, 64, 56, 56), "NCHW"),
    Case("", (32, 64, 56, 56), "NHWC"),
    Case("", (4096, 256), "NC"),
]
# (layout, offset, who, errors)
Measured = tuple[str, float, str, Mapping[str, float]]
# What xhat is held to.
LIMITS = {"y": 2e-6, "var": 1e-6, "dx": 1e-6, "dgamma": 1e-6, "dbeta": 1e-6, "dx*": 1e-6}


def _xhat(problem: Problem) -> dict[str, Array]:
    y, context = xhat.batch_norm(problem.x, problem.gamma, problem.beta, axis=problem.case.axis, eps=EPS)
    grads: Any = xhat.batch_norm_backward(problem.dy, context)
    return {"y": y, "var": context.var, "dx": grads.dx, "dgamma": grads.dgamma, "dbeta": grads.dbeta}


def _torch(problem: Problem) -> dict[str, Array]:
    import torch

    layout = problem.case.layout
    x, dy = tensor_on(problem.x, layout), tensor_on(problem.dy, layout)
    gamma, beta = tensor_on(problem.gamma), tensor_on(problem.beta)
    y, mean, rstd = torch.ops.aten.native_batch_norm(x, gamma, beta, None, None, True, 0.0, EPS)
    dx, dgamma, dbeta = torch.ops.aten.native_batch_norm_backward(
        dy, x, gamma, None, None, mean, rstd, True, EPS, [True, True, True]
    )
    var = rstd.double().numpy() ** -2 - EPS
    y, dx = from_tensor(y, layout), from_tensor(dx, layout)
    return {"y": y, "var": var, "dx": dx, "dgamma": dgamma.numpy(), "dbeta": dbeta.numpy()}


def _flax(problem: Problem) -> dict[str, Array]:
    import jax

    formula = partial(flax_formula, axis=problem.case.axis)

    @jax.jit
    def run(x: Any, gamma: Any, beta: Any, dy: Any) -> dict[str, Any]:
        y, pull = jax.vjp(lambda x, gamma, beta: formula(x, gamma, beta)[0], x, gamma, beta)
        dx, dgamma, dbeta = pull(dy)
        return {"y": y, "var": formula(x, gamma, beta)[1], "dx": dx, "dgamma": dgamma, "dbeta": dbeta}

    found = run(problem.x, problem.gamma, problem.beta, problem.dy)
    return {name: np.asarray(value) for name, value in found.items()}


def _xhat_jax(problem: Problem) -> dict[str, Array]:
    import jax

    import xhat.jax as xj

    @jax.jit
    def run(x: Any, gamma: Any, beta: Any, dy: Any) -> dict[str, Any]:
        def f(x: Any, gamma: Any, beta: Any) -> Any:
            return xj.batch_norm(x, gamma, beta, axis=problem.case.axis, eps=EPS)

        y, pull, moments = jax.vjp(f, x, gamma, beta, has_aux=True)
        dx, dgamma, dbeta = pull(dy)
        return {"y": y, "var": moments.var(), "dx": dx, "dgamma": dgamma, "dbeta": dbeta}

    found = run(problem.x, problem.gamma, problem.beta, problem.dy)
    return {name: np.asarray(value) for name, value in found.items()}


RUNS: dict[str, tuple[str, Callable[[Problem], dict[str, Array]]]] = {
    "xhat": ("xhat", _xhat),
    "xhat.jax": ("jax", _xhat_jax),
    "torch": ("torch", _torch),
    "flax": ("jax", _flax),
}


def errors(got: Mapping[str, Array], truth: Mapping[str, Array]) -> dict[str, float]:
    """The error of each result; see the top of the file for their norms."""

    def relative(name: str) -> float:
        difference = np.linalg.norm(got[name].astype(np.float64) - truth[name])
        return float(difference / np.linalg.norm(truth[name]))

    return {
        "y": float(np.max(np.abs(got["y"] - truth["y"]))),
        "var": float(np.max(np.abs(got["var"] / truth["var"] - 1))),
        **{name: relative(name) for name in ("dx", "dgamma", "dbeta")},
    }


def measure(cases: list[Case] | None = None) -> list[Measured]:
    """For every case, offset and library that is installed."""
    present = {
        "torch": installed("torch"),
        "flax": installed("jax"),
        "xhat.jax": installed("jax"),
        "xhat": True,
    }
    found: list[Measured] = []
    for case in cases or CASES:
        for offset in OFFSETS:
            problem, of_dy = Problem.of(case, offset=offset), Problem.of(case, offset=0, dy_offset=offset)
            truth, truth_of_dy = exact(problem), exact(of_dy)
            for who, (_, run) in RUNS.items():
                if present[who]:
                    row = errors(run(problem), truth)
                    row["dx*"] = errors(run(of_dy), truth_of_dy)["dx"]
                    found.append((case.layout, offset, who, row))
    return found


def table(measured: list[Measured]) -> str:
    """Markdown: y, variance and dx of everyone, side by side, offset by offset."""
    people = list(dict.fromkeys(who for _, _, who, _ in measured))
    shown = ("y", "var", "dx", "dx*")
    head = ["layout", "offset", *(f"{name}, {who}" for name in shown for who in people)]
    lines = []
    by_row: dict[tuple[str, float], dict[str, Mapping[str, float]]] = {}
    for layout, offset, who, found in measured:
        by_row.setdefault((layout, offset), {})[who] = found
    for (layout, offset), row in by_row.items():
        figures = [f"{row[who][name]:.0e}" for name in shown for who in people]
        lines.append([layout, f"{offset:g}", *figures])
    text = (
        "float32, data of unit variance around the offset: largest absolute error of y, largest relative "
        "error of the variance, relative error (L2) of dx, against float64 on the same values. dx*: the same "
        "where dy, not x, lies around the offset. "
        "(32, 64, 56, 56) and (4096, 256); one thread."
    )
    return f"{markdown(head, lines, 1)}\n\n{text}\n"


def in_short(measured: list[Measured]) -> str:
    """Markdown for the README: y and dx of images, by distance from zero, xhat's in its worse layout."""
    columns = [("xhat", ("NCHW", "NHWC")), ("torch", ("NCHW",)), ("torch", ("NHWC",)), ("flax", ("NHWC",))]
    names = ["xhat", "torch, NCHW", "torch, NHWC", "flax, NHWC"]
    found = {(layout, offset, who): row for layout, offset, who, row in measured}
    lines = [
        [
            f"{offset:,.0f}",
            *(
                f"{max(found[layout, offset, who][name] for layout in layouts):.0e}"
                for name in ("y", "dx")
                for who, layouts in columns
            ),
        ]
        for offset in OFFSETS
    ]
    head = ["mean / deviation", *(f"{name}, {who}" for name in ("y", "dx") for who in names)]
    return markdown(head, lines, 0)


def main() -> None:
    """Measures, prints all five errors, and fills the pages unless told not to."""
    parser = argparse.ArgumentParser(prog="benchmarks.exactness", description="Errors far from zero.")
    parser.add_argument("--no-write", action="store_true", help="only print")
    options = parser.parse_args()
    measured = measure()
    console = Console()
    shown = Table(*("layout", "offset", "", *LIMITS))
    missed = []
    for layout, offset, who, found in measured:
        shown.add_row(layout, f"{offset:g}", who, *(f"{found[name]:.1e}" for name in LIMITS))
        missed += [
            f"{layout}, offset {offset:g}: {name} is off by {found[name]:.1e}, expected at most {limit:g}"
            for name, limit in LIMITS.items()
            if who in ("xhat", "xhat.jax") and not found[name] <= limit
        ]
    console.print(shown)
    console.print("\n".join(missed) or "xhat and xhat.jax: every error is within its limit")
    if not options.no_write:
        fill(ROOT / "docs" / "exactness.md", "exactness", table(measured))
        fill(ROOT / "README.md", "exactness in short", in_short(measured))
        console.print("filled docs/exactness.md and README.md")


if __name__ == "__main__":
    main()
