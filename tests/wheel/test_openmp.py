"""What a wheel for Linux does with OpenMP's runtime, which it contains: a process has one pool of threads.

A copy under another name, which `auditwheel repair` makes of a library outside of the wheel, is a second pool: it does
not follow torch.set_num_threads, and its threads spin on the cores of the first. `make wheels` runs this.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import in_a_process

import xhat

PACKAGE = Path(str(xhat._kernels.__file__)).parent  # type: ignore[attr-defined]
if not (PACKAGE / "libgomp.so.1").exists():
    pytest.skip(
        "this installation does not contain OpenMP's runtime: it is no wheel for Linux",
        allow_module_level=True,
    )

USES = """
import json, os, signal, warnings
from pathlib import Path
import numpy as np
import xhat

x = np.random.default_rng(0).normal(size=(16, 24, 56, 56)).astype(np.float32)
exact = x.astype(float).mean((0, 2, 3))

def right():
    return bool(abs(xhat.moments(x).mean - exact).max() < 1e-9)

def runtimes():
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    files = {line[5] for line in lines if len(line) == 6}
    return sorted(file for file in files if Path(file).name.startswith(("libgomp", "libomp", "libiomp")))
"""
BESIDE_TORCH = """
import torch

torch.ones(1 << 20).exp()
found = {"right": right(), "runtimes": runtimes()}

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the very thing under test
pid = os.fork()
if pid == 0:
    signal.alarm(60)  # ends a child that hangs
    os._exit(0 if right() else 1)
found["child"], found["afterwards"] = os.waitpid(pid, 0)[1], right()

found["threads"] = []
for threads in (1, 3, 2):
    torch.set_num_threads(threads)
    found["threads"].append(xhat.config()["threads"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=["import torch, xhat", "import xhat, torch", "import xhat.torch"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a process finds that imports both in this order and then uses both, with two threads."""
    pytest.importorskip("torch")
    return json.loads(
        in_a_process(f"{request.param}\n{USES}\n{BESIDE_TORCH}", timeout=300, OMP_NUM_THREADS="2")
    )


def test_without_another_runtime_the_one_of_the_wheel_is_loaded() -> None:
    """Even where the system has one: so none is needed there."""
    printed = in_a_process(USES + "print(json.dumps([right(), runtimes()]))", LD_LIBRARY_PATH="")
    assert json.loads(printed) == [True, [str(PACKAGE / "libgomp.so.1")]]


def test_the_loader_looks_beside_the_module() -> None:
    try:
        printed = subprocess.run(
            ["readelf", "-d", str(xhat._kernels.__file__)], capture_output=True, text=True, check=True
        )  # type: ignore[attr-defined]
    except FileNotFoundError:
        pytest.skip("readelf is not installed")
    assert "(NEEDED)             Shared library: [libgomp.so.1]" in printed.stdout
    assert "(RUNPATH)            Library runpath: [$ORIGIN]" in printed.stdout


def test_a_process_with_torch_has_one_runtime(found: dict[str, Any]) -> None:
    assert found["right"] and [Path(file).name for file in found["runtimes"]] == ["libgomp.so.1"]


def test_torchs_number_of_threads_is_heeded(found: dict[str, Any]) -> None:
    assert found["threads"] == [1, 3, 2]


def test_a_forked_child_works_after_both_have_used_their_threads(found: dict[str, Any]) -> None:
    assert found["child"] == 0 and found["afterwards"]
