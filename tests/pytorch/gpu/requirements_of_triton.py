"""Whether Triton is here: it is asked for on Linux with x86-64, where the Makefile installs it."""

import os
import platform
import sys
from importlib.util import find_spec

import pytest

PLATFORM = sys.platform == "linux" and platform.machine() == "x86_64"
HERE = find_spec("triton") is not None

requires_triton = pytest.mark.skipif(
    not HERE and not (PLATFORM and os.environ.get("CI") == "true"), reason="Triton is not installed"
)
