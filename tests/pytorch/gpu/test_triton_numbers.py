"""The Triton kernels compute the equations: every case of `interpreted`, run once in a process of its own."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from requirements_of_triton import requires_triton

pytestmark = requires_triton

# In units of the dtype: y absolute, gradients relative to their size. Weights and their gradients are float32.
BOUNDS = {
    "float64": {"y": 1e-14, "dx": 1e-14, "dresidual": 1e-14},
    "float32": {"y": 2e-6, "dx": 3e-7, "dresidual": 3e-7},
    "float16": {"y": 5e-3, "dx": 1e-3, "dresidual": 1e-3},
    "bfloat16": {
        "y": 4e-2,
        "dx": 6e-3,
        "dresidual": 6e-3,
    },  # the interpreter truncates: one unit in place of half a one
}
SUMS = 1e-6  # dweight and dbias
SAME_LINE = 3e-5  # dx of two values a channel, which is a difference of equal terms


@cache
def reports() -> list[dict[str, Any]]:
    """What `interpreted` prints."""
    program = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(report: dict[str, Any]) -> list[str]:
    """The errors of a case that are larger than they may be."""
    bounds = BOUNDS[report["dtype"]]
    found = []
    for name, error in report["errors"].items():
        limit = bounds.get(name, SUMS) if name != "same bits" else None
        if report["case"] == "(2, 1)" and name == "dx":
            limit = SAME_LINE * 3
        if (limit is None and error != 1.0) or (limit is not None and not error <= limit):
            found.append(f"{report['case']}: {name} {error:.1e}")
    return found


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_results_are_exact_in_every_dtype_and_layout(dtype: str, layout: str) -> None:
    chosen = [r for r in reports() if r["dtype"] == dtype and ("NHWC" in r["case"]) == (layout == "NHWC")]
    assert chosen
    assert [error for report in chosen for error in wrong(report)] == []


def test_an_offset_of_x_or_of_dy_costs_no_digits() -> None:
    chosen = [r for r in reports() if "offset=1" in r["case"] and r["dtype"] == "float32"]
    assert len(chosen) >= 16
    assert max(r["errors"]["dx"] for r in chosen) < 3e-7
    assert max(r["errors"]["dweight"] for r in chosen) < 3e-7


def named(case: str) -> dict[str, Any]:
    """The errors of what is no case of one forward and backward pass."""
    (found,) = (r["errors"] for r in reports() if r["case"] == case)
    return dict(found)


def test_second_derivatives_are_exact() -> None:
    assert max(named("second_derivatives").values()) < 1e-12


def test_a_compiled_graph_gives_the_bits_of_eager_mode() -> None:
    assert named("graphs") == {"same bits": 1.0}


def test_layers_track_and_evaluate_as_torchs_do() -> None:
    assert max(named("layers").values()) < 2e-7


def test_statistics_that_move_in_a_pass_have_the_bits_of_those_that_move_after_it_and_are_exact() -> None:
    assert len(named("moved")) == 3
    for found in named("moved").values():
        assert found["same bits"] == 1.0 and found["mean"] < 1e-7 and found["var"] < 1e-15


def test_a_pass_that_is_repeated_or_differentiated_twice_moves_statistics_once() -> None:
    assert named("moved_once") == {"once": 1.0}


def test_other_layers_and_recalibrate_compute_their_formulas() -> None:
    found = named("variants")
    assert set(found) == {"BatchRenorm2d", "GhostBatchNorm2d and adapt", "recalibrate"}
    assert max(found.values()) < 2e-7 and found["recalibrate"] < 1e-14


def test_opcheck_finds_nothing_wrong_with_the_operators() -> None:
    assert named("opchecks") == dict.fromkeys(("batch_norm", "batch_norm_backward", "track"), "SUCCESS")
