"""How often a pass launches a kernel, and how often one is compiled: by `no_launches`, once in a process of its own."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from requirements_of_triton import requires_triton

pytestmark = requires_triton


@cache
def said() -> dict[str, Any]:
    """What `no_launches` prints."""
    program = Path(__file__).with_name("no_launches.py")
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_large_pass_launches_three_kernels() -> None:
    for layout in ("large", "large NHWC"):
        forward, backward = said()[layout]
        assert forward == ["moments", "merge_moments", "normalize"]
        assert backward == ["gradient_sums", "merge_gradient_sums", "input_gradient"]


def test_a_pass_whose_channels_fit_into_registers_launches_one() -> None:
    assert said()["small"] == [["forward"], ["backward"]]


def test_running_statistics_move_in_the_launches_of_the_pass() -> None:
    three = ["moments", "merge_moments", "normalize"]
    assert said()["layer"] == said()["average"] == said()["function"] == three
    assert said()["small layer"] == ["forward"]
    assert said()["batches"] == 3


def test_an_evaluation_launches_two_kernels() -> None:
    assert said()["evaluation"] == ["merge_moments", "normalize"]


def test_fifty_batch_sizes_are_compiled_once() -> None:
    assert said()["compilations for fifty batch sizes"] == 0


def test_the_host_reads_nothing_but_a_masks_weights() -> None:
    reads = dict(said()["reads"])
    assert reads.pop("mask") > 0  # so that the others would be seen
    assert reads == {"step": 0, "average": 0, "skip": 0}


def test_a_compiled_layer_launches_one_kernel_more_and_reads_nothing() -> None:
    found = said()["compiled"]
    assert found["launches"] == ["moments", "merge_moments", "normalize", "track"]
    assert found["reads"] == 0 and found["tracked"] == 3


def test_running_statistics_are_as_before_where_the_map_does_not_compile() -> None:
    found = said()["map that does not compile"]
    assert found == {"error": "does not compile", "launches": ["moments"], "batches": 0}


def test_a_kernel_runs_on_its_tensors_device_in_the_stream_that_is_current_then() -> None:
    assert said()["another device"] == [["track", 71, 1], ["track", 75, 1], 0]
