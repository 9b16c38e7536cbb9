"""`python -m benchmarks.tolerances`: how exact float32 batch norm can be, formula by formula, for tests of kernels.

Formulas that people write, torch's layer, flax's and xhat, one thread each, on normal data of unit variance around an
offset d, so that |mu| / sigma = d: in float32, and in float16 and bfloat16 with float32 arithmetic. Each error is a
share of a scale that no cancellation makes small: of the largest value for y and dx, of itself for var, and of the root
of the sum of the squared terms for dgamma and dbeta. Replaces benchmarks/results/tolerances/<machine>.csv and the
tables of docs/tolerances.md.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from typing import NamedTuple

import numpy as np

from benchmarks.exactness import RUNS
from benchmarks.harness.cases import Case
from benchmarks.harness.machine import machine, slug
from benchmarks.harness.problem import EPS, Array, Problem, exact
from benchmarks.harness.report import described_as, fill, markdown
from benchmarks.harness.rows import RESULTS_FOLDER, ROOT, read, write
from benchmarks.numpy.rivals import installed
from xhat import equations

__all__ = [
    "ACCURATE",
    "CONSTANT",
    "FOLDER",
    "RESULTS",
    "Error",
    "allowed",
    "finish",
    "main",
    "measure",
    "tables",
]

RESULTS = ("y", "var", "dx", "dgamma", "dbeta")
# (N, C, H, W), and (N H W, C) for NC: m = N H W values in each channel.
SHAPES = [(8, 8, 2, 2), (10, 8, 10, 10), (10, 8, 100, 100), (100, 4, 100, 100)]
OFFSETS = (0.0, 10.0, 1e3, 1e5)
# The unit roundoff of each dtype, and the offsets at which it still has digits for the deviations.
DTYPES = {
    "float32": (2.0**-24, OFFSETS),
    "float16": (2.0**-11, OFFSETS[:2]),
    "bfloat16": (2.0**-8, OFFSETS[:2]),
}
LAYOUTS = ("NCHW", "NHWC", "NC")
# The rule allows CONSTANT u (1 + d): the power of two above all that was measured of the formulas that sum accurately.
CONSTANT = 8
ACCURATE = ("blocks", "double", "xhat")
FOLDER = RESULTS_FOLDER / "tolerances"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


class Error(NamedTuple):
    """The errors of one formula in one case, as shares of the scales at the top of the file."""

    m: int
    offset: float
    layout: str
    dtype: str
    formula: str
    y: float
    var: float
    dx: float
    dgamma: float
    dbeta: float


def allowed(offset: float, dtype: str = "float32") -> float:
    """The rule: CONSTANT u (1 + d) with float32's u, and one rounding of y and dx to 16 bits."""
    rounding = 0 if dtype == "float32" else DTYPES[dtype][0]
    return CONSTANT * DTYPES["float32"][0] * (1 + offset) + rounding


def _axes(case: Case) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(case.stored_shape)) if axis != case.axis)


def _one_after_another(a: Array, case: Case) -> Array:
    """The sum of each channel in the order of memory, in a's dtype."""
    rows = np.moveaxis(a, case.axis, 0).reshape(a.shape[case.axis], -1)
    total = np.add.accumulate(rows, axis=1)[:, -1]
    return np.expand_dims(total, _axes(case))


def _blocks(a: Array, case: Case) -> Array:
    """The same by numpy.sum of contiguous rows, which is pairwise: in any layout, for the channels lie first."""
    rows = np.ascontiguousarray(np.moveaxis(a, case.axis, 0)).reshape(a.shape[case.axis], -1)
    return np.expand_dims(rows.sum(axis=1), _axes(case))


def _numpy(a: Array, case: Case) -> Array:
    """numpy.sum over the axes: pairwise along the last one alone, one after another over the others."""
    total: Array = a.sum(_axes(case), keepdims=True)
    return total


def _double(a: Array, case: Case) -> Array:
    """Summed in double, and rounded to float32."""
    return a.sum(_axes(case), dtype=np.float64, keepdims=True).astype(np.float32)


def _batch_norm(
    problem: Problem, sum_: Callable[[Array, Case], Array], one_pass: bool = False
) -> dict[str, Array]:
    """Forward and backward in float32 with this sum, the variance in two passes or as mean(x^2) - mu^2."""
    case, m = problem.case, problem.x.size // problem.gamma.size

    def total(a: Array) -> Array:
        return sum_(a, case)

    x, dy = problem.x.astype(np.float32), problem.dy.astype(np.float32)
    gamma, beta = (np.expand_dims(p, _axes(case)) for p in (problem.gamma, problem.beta))
    count = np.float32(m)
    if one_pass:
        mu = total(x) / count
        var = np.maximum(total(x * x) / count - mu * mu, np.float32(0))
    else:
        mu, m2 = equations.moments(x, total, count)
        var = equations.variance(m2, count)
    rstd = equations.reciprocal_std(var, np.float32(EPS), np.sqrt)
    xhat = equations.standardize(x, mu, rstd)
    dbeta, dgamma = equations.gradient_sums(dy, xhat, total)
    dx = equations.input_gradient(dy, xhat, dbeta, dgamma, gamma=gamma, rstd=rstd, m=count)
    y = equations.normalize(x, mu, rstd, gamma, beta)
    rounded = {"y": y.astype(problem.x.dtype), "dx": dx.astype(problem.x.dtype)}
    return {**rounded, "var": var.ravel(), "dgamma": dgamma.ravel(), "dbeta": dbeta.ravel()}


FORMULAS: dict[str, tuple[str, Callable[[Problem], dict[str, Array]]]] = {
    "one after another": ("numpy", lambda p: _batch_norm(p, _one_after_another)),
    "numpy.sum": ("numpy", lambda p: _batch_norm(p, _numpy)),
    "blocks": ("numpy", lambda p: _batch_norm(p, _blocks)),
    "double": ("numpy", lambda p: _batch_norm(p, _double)),
    "one pass": ("numpy", lambda p: _batch_norm(p, _blocks, one_pass=True)),
    **{name: RUNS[name] for name in ("torch", "flax", "xhat")},
}


def _problem(case: Case, offset: float) -> Problem:
    """Data around the offset; the channels differ by fractions, or every mean would lie on a number of float32."""
    problem = Problem.of(case, offset=0)
    middles = offset + min(offset, 1.0) * 0.137 * np.arange(len(problem.gamma))
    x = problem.x.astype(np.float64) + np.expand_dims(middles, _axes(case))
    return replace(problem, x=x.astype(problem.x.dtype))


def _errors(problem: Problem, got: dict[str, Array], truth: dict[str, Array]) -> dict[str, float]:
    axes = _axes(problem.case)
    gamma, beta = (np.expand_dims(p.astype(np.float64), axes) for p in (problem.gamma, problem.beta))
    dy = problem.dy.astype(np.float64)
    scales = {
        "y": np.max(np.abs(truth["y"])),
        "var": truth["var"],
        "dx": np.max(np.abs(truth["dx"])),
        "dgamma": np.sqrt(((dy * (truth["y"] - beta) / gamma) ** 2).sum(axes)),
        "dbeta": np.sqrt((dy**2).sum(axes)),
    }
    return {
        name: float(np.max(np.abs(got[name].astype(np.float64) - truth[name]) / scales[name]))
        for name in RESULTS
    }


def measure(shapes: Sequence[tuple[int, ...]] = SHAPES) -> Iterator[Error]:
    """Every formula in every case."""
    for shape, layout, (dtype, (_, offsets)) in product(shapes, LAYOUTS, DTYPES.items()):
        m = prod(shape) // shape[1]
        if dtype != "float32" and m > 1e5:
            continue
        case = Case("", (m, shape[1]) if layout == "NC" else shape, layout, dtype)
        for offset in offsets:
            problem = _problem(case, offset)
            truth = exact(problem)
            for name, (package, run) in FORMULAS.items():
                if package in ("numpy", "xhat") or installed(package):
                    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                        found = _errors(problem, run(problem), truth)
                    yield Error(m, offset, layout, dtype, name, **found)


def _worst(rows: Sequence[Error], names: Sequence[str], **fields: object) -> dict[str, float]:
    """Formula -> the largest of these errors among the rows with these values."""
    found: dict[str, float] = {}
    for row in rows:
        if all(getattr(row, name) == value for name, value in fields.items()):
            found[row.formula] = max(found.get(row.formula, 0.0), *(getattr(row, name) for name in names))
    return found


def _lines(found: dict[str, float], formulas: Sequence[str]) -> list[str]:
    return [f"{found[name]:.0e}" if name in found else "" for name in formulas]


def tables(rows: Sequence[Error]) -> dict[str, str]:
    """Markdown for each marker of the page."""
    plain = [row for row in rows if row.dtype == "float32"]
    formulas = list(dict.fromkeys(row.formula for row in rows))
    u = DTYPES["float32"][0]
    cases = sorted({(row.offset, row.m) for row in plain})
    of_y = [
        [f"{d:,.0f}", f"{m:,}", *_lines(_worst(plain, ["y"], offset=d, m=m), formulas), f"{allowed(d):.0e}"]
        for d, m in cases
    ]
    scaled = [
        row._replace(**{name: getattr(row, name) / (u * (1 + row.offset)) for name in RESULTS})
        for row in plain
    ]
    by_result = [_worst(scaled, [name]) for name in RESULTS]
    constants = [[name, *(f"{worst[name]:.2g}" for worst in by_result)] for name in formulas]
    layouts = [
        [layout, *_lines(_worst(plain, ["y"], layout=layout, offset=1e3, m=100_000), formulas)]
        for layout in LAYOUTS
    ]
    narrow = [
        [
            dtype,
            *(
                f"{max(_worst(rows, [name], dtype=dtype).values()) / DTYPES[dtype][0]:.2f}"
                for name in ("y", "dx")
            ),
        ]
        for dtype in ("float16", "bfloat16")
    ]
    return {
        "y": markdown(["d", "m", *formulas, "allowed"], of_y, 0),
        "constants": markdown(["error / (u (1 + d))", *RESULTS], constants, 1),
        "layouts": markdown(["d = 1,000, m = 100,000", *formulas], layouts, 1),
        "16 bits": markdown(["error / u of the dtype", "y", "dx"], narrow, 1),
    }


def main() -> None:
    """Measures, and writes unless told not to."""
    parser = argparse.ArgumentParser(prog="benchmarks.tolerances", description="Errors, formula by formula.")
    parser.add_argument("--no-write", action="store_true", help="only print")
    options = parser.parse_args()
    if not os.environ.items() >= ONE_THREAD.items():  # libraries read them when they are loaded
        command = [sys.executable, "-m", "benchmarks.tolerances", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ONE_THREAD)
    rows, described = [], machine(1)
    for row in measure():
        rows.append(row)
        print(*row)
    if not options.no_write:
        finish(described, rows)


def finish(described: dict[str, str], rows: Sequence[Error]) -> None:
    """Writes the results file and the tables of the page."""
    path, page = FOLDER / f"{slug(described)}.csv", ROOT / "docs" / "tolerances.md"
    write(path, described, rows)
    described, rows = read(path, Error)  # with the digits that the file keeps
    for marker, text in tables(rows).items():
        fill(page, f"tolerances, {marker}", text)
    fill(page, "tolerances, machine", described_as(described))


if __name__ == "__main__":
    main()
