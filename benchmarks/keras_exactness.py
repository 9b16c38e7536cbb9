"""`python -m benchmarks.keras_exactness`: the table of `benchmarks.exactness` for Keras's layer and xhat.keras.

KERAS_BACKEND chooses the backend: jax or torch, whose table in docs/keras.md is filled. The gradients are those of the
backend's automatic differentiation; on jax all of it is compiled.
"""

import argparse
import os
from typing import Any

import numpy as np

from benchmarks.exactness import OFFSETS, errors
from benchmarks.harness.cases import Case
from benchmarks.harness.problem import EPS, Array, Problem, exact
from benchmarks.harness.report import fill, markdown
from benchmarks.harness.rows import ROOT

__all__ = ["main", "run", "table"]

CASES = [Case("", (32, 64, 56, 56), "NHWC"), Case("", (4096, 256), "NC")]


def run(kind: Any, problem: Problem) -> dict[str, Array]:
    """y, var and the gradients of one layer of this class, in training."""
    import keras

    layer = kind(axis=problem.case.axis, momentum=0, epsilon=EPS)
    layer.build(problem.x.shape)
    layer.gamma.assign(problem.gamma)
    layer.beta.assign(problem.beta)
    x, dy = (keras.ops.convert_to_tensor(a) for a in (problem.x, problem.dy))
    way = {"jax": _on_jax, "torch": _on_torch}[keras.backend.backend()]
    found = dict(zip(("y", "dx", "dgamma", "dbeta", "var"), way(layer, x, dy), strict=True))
    return {name: keras.ops.convert_to_numpy(value) for name, value in found.items()}


def _on_jax(layer: Any, x: Any, dy: Any) -> tuple[Any, ...]:
    import jax

    def call(weights: Any, others: Any, x: Any) -> Any:
        return layer.stateless_call(weights, others, x, training=True)

    @jax.jit
    def both(weights: Any, others: Any, x: Any, dy: Any) -> Any:
        y, pull, others = jax.vjp(lambda w, x: call(w, others, x), weights, x, has_aux=True)
        (dgamma, dbeta), dx = pull(dy)
        return y, dx, dgamma, dbeta, others[1]

    return both(
        *([w.value for w in ws] for ws in (layer.trainable_variables, layer.non_trainable_variables)), x, dy
    )


def _on_torch(layer: Any, x: Any, dy: Any) -> tuple[Any, ...]:
    import torch

    x = x.detach().requires_grad_(True)
    y = layer(x, training=True)
    gradients = torch.autograd.grad(y, [x, layer.gamma.value, layer.beta.value], dy)
    return y.detach(), *gradients, layer.moving_variance.value


def table(cases: list[Case] | None = None) -> str:
    """Markdown: the errors of both layers, offset by offset."""
    import keras

    import xhat.keras

    people = {"Keras": keras.layers.BatchNormalization, "xhat.keras": xhat.keras.BatchNormalization}
    shown = ("y", "var", "dx", "dx*")
    lines = []
    for case in cases or CASES:
        for offset in OFFSETS:
            problem, of_dy = Problem.of(case, offset=offset), Problem.of(case, offset=0, dy_offset=offset)
            truth, truth_of_dy = exact(problem), exact(of_dy)
            row: dict[str, dict[str, float]] = {}
            for who, kind in people.items():
                row[who] = errors(run(kind, problem), truth)
                row[who]["dx*"] = errors(run(kind, of_dy), truth_of_dy)["dx"]
            figures = [f"{row[who][name]:.0e}" for name in shown for who in people]
            lines.append([case.layout, f"{offset:g}", *figures])
    return markdown(["layout", "offset", *(f"{name}, {who}" for name in shown for who in people)], lines, 1)


def main() -> None:
    """Measures, prints, and fills docs/keras.md unless told not to."""
    parser = argparse.ArgumentParser(prog="benchmarks.keras_exactness", description="Errors far from zero.")
    parser.add_argument("--no-write", action="store_true", help="only print")
    backend = os.environ.setdefault("KERAS_BACKEND", "jax")
    options = parser.parse_args()
    with np.errstate(invalid="ignore"):
        text = table()
    print(text)
    if not options.no_write and fill(ROOT / "docs" / "keras.md", f"exactness on {backend}", text):
        print("filled docs/keras.md")


if __name__ == "__main__":
    main()
