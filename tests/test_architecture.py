"""The map in ARCHITECTURE.md, held: who imports whom, what an import loads, what is public, how long things get.

Each test that looks for offenders has a neighbour that plants one, so that none of them can pass blindly.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xhat

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "xhat"

# What each part of the package may import of the package; a part not named here may import nothing.
MAY_IMPORT = {
    "errors": set(),
    "layout": {"errors"},
    "equations": {"layout", "errors"},
    "checks": {"equations", "layout", "errors"},
    "ops": {"checks", "equations", "layout", "errors", "_kernels"},
    "numpy": {"ops", "equations", "layout", "errors"},
    "jax": {"ops", "equations", "layout", "errors"},
    "torch": {"torch", "ops", "equations", "layout", "errors"},
    "lens": {"lens", "ops", "equations", "layout", "errors"},
    "diagnosis": {"diagnosis", "equations", "errors"},
}
RIM = {"__init__", "__main__", "cli"}  # may import everything
