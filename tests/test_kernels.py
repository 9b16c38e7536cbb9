"""The kernels: near the oracle, and with the same bits for every instruction set and number of threads."""

import json
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import oracle
import pytest
import threadpoolctl
from conftest import DTYPES, LAYOUTS, TESTS, in_a_process
from survey import LARGE, NOT_FINITE, OPTIONS, Result, survey

import xhat

ISAS = list(xhat.config()["isa_available"])
SURVEY = (TESTS / "survey.py").read_text()


@cache
def surveyed(isa: str, threads: int) -> dict[str, Any]:
    """The survey in a process of its own; with one thread also the errors."""
    what = ["errors"] if threads == 1 else []
    out = json.loads(in_a_process(SURVEY, *what, XHAT_ISA=isa, OMP_NUM_THREADS=str(threads)))
    assert (out["isa"], out["threads"]) == (isa, threads)
    found: dict[str, Any] = out["found"]
    return found


def digests(found: dict[str, Any]) -> dict[str, str]:
    """Only the bits."""
    return {k: digest for k, (digest, _) in found.items()}


def test_the_survey_reaches_every_case() -> None:
    found = surveyed(ISAS[0], 1)
    assert len(found) == ((len(LAYOUTS) + len(NOT_FINITE)) * len(DTYPES) + len(LARGE) * 2) * len(OPTIONS)
    repeated = [digest for digest, n in Counter(digests(found).values()).items() if n > 1]
    assert not repeated  # each case computes something of its own


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_is_near_the_oracle(isa: str) -> None:
    """Within a few roundings of the dtype; for float64, sums have rounding errors of the same size."""
    errors = {k: error for k, (_, error) in surveyed(isa, 1).items() if error is not None}
    assert not {k: error for k, error in errors.items() if not error <= (32 if "float64" in k else 4)}


@pytest.mark.parametrize("isa", ISAS[1:])
def test_every_instruction_set_gives_the_same_bits(isa: str) -> None:
    assert digests(surveyed(isa, 1)) == digests(surveyed(ISAS[0], 1))


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    assert digests(surveyed(ISAS[0], threads)) == digests(surveyed(ISAS[0], 1))


def test_run_after_run_gives_the_same_bits() -> None:
    some = {k: LARGE[k] for k in ("NCHW, 3 channels", "(N, C), narrow")}
    once = survey(some, dtypes=["float32"])
    for threads in (1, 2, 7):
        with threadpoolctl.threadpool_limits(threads, user_api="openmp"):
            assert survey(some, dtypes=["float32"]) == once


@pytest.mark.parametrize("options", ["plain", "silu, residual, weights"])
@pytest.mark.parametrize("where", LARGE)
def test_large_arrays_are_near_the_oracle(where: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where work is split over pieces and threads; the reference is in float64 here, for speed."""
    monkeypatch.setattr(oracle, "WIDE", np.float64)
    with threadpoolctl.threadpool_limits(2, user_api="openmp"):
        assert Result(where, LARGE[where], np.dtype(np.float32), options).error() <= 4


@pytest.mark.parametrize("width", [*range(1, 70), 127, 128, 129, 511, 512, 513, 1023, 1025, 2049, 4097])
def test_every_width_of_rows_and_columns(width: int) -> None:
    """Remainders of vectors, lanes and chunks; the transposed shape has the same remainders of rows."""
    rng = np.random.default_rng(width)
    for shape, axis in (((2, 3, width), 1), ((3, width), 1), ((width + 1, 3), 1)):
        x, dy = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        y, context = xhat.batch_norm(x, axis=axis)
        assert oracle.worst(y, oracle.forward(x, axis=axis).y) < 1e-6
        dx = xhat.batch_norm_backward(dy, context).dx
        steepest = float(np.abs(dy).max() / np.sqrt(context.var.min() + 1e-5))  # what cancels in dx
        assert oracle.worst(dx, oracle.backward(dy, x, axis=axis).dx) < 1e-6 * max(1, steepest)


@pytest.mark.parametrize("where", ["NCHW", "NHWC", "(N, C), many", "long rows"])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_the_bits_do_not_depend_on_the_alignment(where: str, shift: int) -> None:
    layout = LAYOUTS[where]
    x = layout.array("x", np.float32)
    room = np.empty(x.size + shift, np.float32)[shift:]
    moved = layout.view(room.reshape(layout.buffer))
    moved[...] = x
    results = []
    for a in (x, moved):
        y, context = xhat.batch_norm(a, axis=layout.axis, activation="silu")
        results.append((y, xhat.batch_norm_backward(x, context).dx, context.mean, context.var))
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


def test_the_forced_instruction_set_is_the_one_in_use() -> None:
    for isa in ISAS:
        assert in_a_process("import xhat; print(xhat.config()['isa'])", XHAT_ISA=isa).strip() == isa


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    out = in_a_process(
        "try:\n    import xhat\nexcept ValueError as error:\n    print(type(error).__name__, error)\n",
        XHAT_ISA="z80",
    )
    assert out.strip() == f"EngineError XHAT_ISA: got 'z80', expected one of {', '.join(ISAS)}, or nothing."
