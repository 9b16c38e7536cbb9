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
