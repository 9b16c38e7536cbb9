"""The other backends of Keras, each in a process of its own: it is chosen when Keras is imported."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from on_backend import BACKEND


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_these_tests_pass_on_another_backend(backend: str) -> None:
    if backend == BACKEND or not find_spec(backend):
        pytest.skip(f"without {backend}")
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", here.parent, f"--ignore={here}"],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.skipif(
    find_spec("tensorflow") is not None, reason="TensorFlow, Keras's default backend, is installed"
)
def test_a_backend_that_is_not_installed_is_named_with_the_remedy() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", "import xhat.keras"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, "KERAS_HOME": os.devnull},  # no file of the user's that names a backend
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "ModuleNotFoundError: xhat.keras: tensorflow is not installed. Install Keras and a backend"
    )
