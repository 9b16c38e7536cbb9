"""What a wheel for Linux does with OpenMP's runtime, which it contains: a process has one pool of threads.

A copy under another name, which `auditwheel repair` makes of a library outside of the wheel, is a second pool: it does
not follow torch.set_num_threads, and its threads spin on the cores of the first. `make wheels` runs this.
"""

import json
import subprocess
from pathlib import Path

import pytest
from conftest import in_a_process

import xhat

PACKAGE = Path(str(xhat._kernels.__file__)).parent  # type: ignore[attr-defined]
if not (PACKAGE / "libgomp.so.1").exists():
    pytest.skip(
        "this installation does not contain OpenMP's runtime: it is no wheel for Linux",
        allow_module_level=True,
    )

ORDERS = ["import torch, xhat", "import xhat, torch", "import xhat.torch"]
# Both use their threads; then the runtimes in the memory of the process.
USED = """
import json
import numpy as np

def runtimes():
    lines = [line.split() for line in open("/proc/self/maps")]
    return sorted({line[5] for line in lines if len(line) > 5 and "omp" in line[5].rsplit("/", 1)[1].split(".")[0]})

x = np.random.default_rng(0).normal(size=(16, 24, 56, 56)).astype(np.float32)
exact = x.astype(float).mean((0, 2, 3))
def right():
    return bool(abs(xhat.moments(x).mean - exact).max() < 1e-9)
"""


def test_without_another_runtime_the_one_of_the_wheel_is_loaded() -> None:
    """Even where the system has one: so none is needed there."""
    found = in_a_process(
        "import xhat\n" + USED + "print(json.dumps([right(), runtimes()]))", LD_LIBRARY_PATH=""
    )
    assert json.loads(found) == [True, [str(PACKAGE / "libgomp.so.1")]]


def test_the_loader_looks_beside_the_module() -> None:
    try:
        printed = subprocess.run(
            ["readelf", "-d", xhat._kernels.__file__], capture_output=True, text=True, check=True
        )  # type: ignore[attr-defined]
    except FileNotFoundError:
        pytest.skip("readelf is not installed")
    assert "(NEEDED)             Shared library: [libgomp.so.1]" in printed.stdout
    assert "(RUNPATH)            Library runpath: [$ORIGIN]" in printed.stdout


@pytest.mark.parametrize("order", ORDERS)
def test_a_process_with_torch_has_one_runtime(order: str) -> None:
    pytest.importorskip("torch")
    code = f"{order}\nimport xhat, torch\n{USED}torch.ones(1 << 20).exp()\nprint(json.dumps([right(), runtimes()]))"
    good, runtimes = json.loads(in_a_process(code, OMP_NUM_THREADS="2"))
    assert good and [Path(name).name for name in runtimes] == ["libgomp.so.1"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_torchs_number_of_threads_is_heeded(order: str, threads: int) -> None:
    pytest.importorskip("torch")
    code = f"{order}\nimport xhat, torch\ntorch.set_num_threads({threads})\nprint(xhat.config()['threads'])"
    assert int(in_a_process(code, OMP_NUM_THREADS="2")) == threads


@pytest.mark.parametrize("order", ORDERS)
def test_a_forked_child_works_after_both_have_used_their_threads(order: str) -> None:
    pytest.importorskip("torch")
    code = """
import os, signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the very thing under test
torch.ones(1 << 20).exp()
before = right()
pid = os.fork()
if pid == 0:
    signal.alarm(30)  # ends a child that hangs
    os._exit(0 if right() else 1)
print(json.dumps([before, os.waitpid(pid, 0)[1], right()]))
"""
    found = in_a_process(f"{order}\nimport xhat, torch\n{USED}{code}", OMP_NUM_THREADS="2")
    assert json.loads(found) == [True, 0, True]
