"""Peak memory: the forward keeps nothing of x's size but x, and the backward needs dx alone.

tracemalloc sees the results, which NumPy allocates; the resident set shows what the kernels allocate themselves.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ACTIVATIONS, Array, in_a_process

import xhat

SHAPES = {"NCHW": ((8, 16, 64, 64), 1), "NHWC": ((8, 64, 64, 16), -1), "(N, C)": ((4096, 128), 1)}


def traced(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """The result of a call, and the bytes that NumPy and Python held in addition: at the peak, and afterwards."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        result = call()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return result, peak - before, after - before


def test_a_temporary_array_is_measured() -> None:
    x = np.ones((1000, 1000))
    _, peak, after = traced(lambda: float((x * 2).sum()))
    assert peak >= x.nbytes > 100 * after


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("where", SHAPES)
def test_forward_and_backward_allocate_their_results_alone(
    where: str, residual: bool, activation: Any
) -> None:
    shape, axis = SHAPES[where]
    x: Array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    dy, r = x[::-1].copy(), (x + 1 if residual else None)
    little = x.nbytes // 20
    arguments = {"axis": axis, "residual": r, "activation": activation}
    (y, context), peak, _ = traced(lambda: xhat.batch_norm(x, **arguments))
    assert peak <= y.nbytes + little
    (grads), peak, _ = traced(lambda: xhat.batch_norm_backward(dy, context))
    assert peak <= grads.dx.nbytes * (2 if residual else 1) + little


@pytest.mark.parametrize("where", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_the_context_holds_nothing_of_the_size_of_x_but_x(activation: Any, where: str) -> None:
    shape, axis = SHAPES[where]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    context, _, after = traced(lambda: xhat.batch_norm(x, axis=axis, activation=activation)[1])
    assert after <= x.nbytes // 20
    assert context.x is x or np.shares_memory(context.x, x)


def test_with_results_given_nothing_of_the_size_of_x_is_allocated() -> None:
    shape, axis = SHAPES["NCHW"]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    y, dx, dy = np.empty_like(x), np.empty_like(x), x[::-1].copy()
    xhat.batch_norm(x[:2], axis=axis, out=y[:2])  # imports that are made on first use
    (_, context), peak, _ = traced(lambda: xhat.batch_norm(x, axis=axis, out=y))
    assert peak <= x.nbytes // 20
    _, peak, _ = traced(lambda: xhat.batch_norm_backward(dy, context, out=dx))
    assert peak <= x.nbytes // 20
    _, peak, _ = traced(lambda: xhat.gradient_paths(dy, context))
    assert peak >= x.nbytes  # temporary arrays are measured


RESIDENT = """
import re
import sys
import numpy as np
import xhat

shape, axis = eval(sys.argv[1])
x = np.ones(shape, np.float32)
x.reshape(-1)[::2] = 3
dy, y, dx = x.copy(), np.zeros_like(x), np.zeros_like(x)
small, place = x[:2].copy(), x[:2].copy()
# Allocates the thread pool, late imports, and the pages of code.
xhat.batch_norm_backward(small, xhat.batch_norm(small, axis=axis, out=place, activation="silu")[1], out=place)
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
_, context = xhat.batch_norm(x, axis=axis, out=y, activation="silu")
xhat.batch_norm_backward(dy, context, out=dx)
taken = peak() - before
if len(sys.argv) > 2:
    z = x + 1
    taken = peak() - before
print(taken * 1024, x.nbytes)
"""
# Not getrusage: a child process starts with the peak of its parent.
on_linux = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from /proc, on Linux"
)


@on_linux
@pytest.mark.parametrize("where", ["NCHW", "NHWC", "(N, C)"])
def test_the_kernels_take_no_memory_of_the_size_of_x(where: str) -> None:
    (n, *rest), axis = SHAPES[where]
    case = repr(((n * 16, *rest), axis))  # the interpreter itself may take 2 MB meanwhile
    taken, size = map(int, in_a_process(RESIDENT, case, OMP_NUM_THREADS="2").split())
    assert taken <= size // 10


@on_linux
def test_the_resident_set_shows_a_temporary_array() -> None:
    taken, size = map(
        int, in_a_process(RESIDENT, "(128, 16, 64, 64), 1", "temporary", OMP_NUM_THREADS="2").split()
    )
    assert taken >= size * 0.9
