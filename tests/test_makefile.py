"""How PyTorch comes into an environment: as a build for the CPU, or not at all, and never along with something else."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PINNED = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]  # type: ignore[index]
WANTED = f"torch=={PINNED}" + ("+cpu" if sys.platform == "linux" else "")
VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
Made = Callable[..., tuple[subprocess.CompletedProcess[str], bool, str]]

# An interpreter that knows no torch, and whose pip ends as it is told to, noting what it was asked for.
PYTHON = """#!/bin/sh
case "$*" in
  *"import torch"*) exit {imported} ;;
  *pip*) echo "$@" >> "{asked}"; echo "{said}" >&2; exit {status} ;;
esac
"""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Runs the rule for torch in an environment of nothing; what make said, whether it counts as made, what pip got."""
    if shutil.which("make") is None or sys.platform == "win32":
        pytest.skip("make is not installed")
    stamps, asked = tmp_path / f"made-for-{VERSION}", tmp_path / "asked"
    stamps.mkdir()
    (stamps / "python").touch()
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"

    def run(*, ci: str = "", imported: int = 1, said: str = "", status: int = 0):  # type: ignore[no-untyped-def]
        python.write_text(PYTHON.format(imported=imported, asked=asked, said=said, status=status))
        python.chmod(0o755)
        command = ["make", f"VENV={tmp_path}", f"PYTHON={sys.executable}", f"CI={ci}"]
        command += ["-o", f"{stamps}/python", f"{stamps}/torch"]
        # Of its own: a make that runs the tests would tell this one to report to it.
        outer = {
            name: value
            for name, value in os.environ.items()
            if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        }
        ended = subprocess.run(command, cwd=ROOT, env=outer, capture_output=True, text=True, check=False)
        return ended, (stamps / "torch").exists(), asked.read_text() if asked.exists() else ""

    return run


def test_no_extra_but_its_own_asks_for_torch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for name, needs in extras.items() if any(re.match(r"torch\W", n) for n in needs)} == {
        "torch"
    }


def test_a_build_for_the_cpu_is_asked_for(made: Made) -> None:
    ended, stamped, asked = made()
    assert (ended.returncode, stamped) == (0, True), ended.stderr
    assert asked.split()[-1] == WANTED
    assert "constraints.txt" in asked


def test_a_torch_that_is_there_stays(made: Made) -> None:
    ended, stamped, asked = made(imported=0)
    assert (ended.returncode, stamped, asked) == (0, True, "")


# What pip says without and with a constraint on the package.
NOT_OFFERED = [
    f"ERROR: Could not find a version that satisfies the requirement {WANTED} (from versions: 2.13.0)",
    f"ERROR: Cannot install {WANTED} because these package versions have conflicting dependencies.",
]


@pytest.mark.parametrize("said", NOT_OFFERED)
def test_where_there_is_none_a_line_says_so(said: str, made: Made) -> None:
    ended, stamped, _ = made(said=said, status=1)
    assert (ended.returncode, stamped) == (0, False)  # not made: it is tried again the next time
    assert ended.stdout.startswith(f"pip is offered no {WANTED} here, so what needs PyTorch is left out.")
    assert len(ended.stdout.splitlines()) == 1
    assert ended.stderr == ""


@pytest.mark.parametrize("said", NOT_OFFERED)
def test_continuous_integration_needs_it(said: str, made: Made) -> None:
    ended, stamped, _ = made(ci="true", said=said, status=1)
    assert ended.returncode != 0
    assert not stamped


def test_any_other_failure_is_shown(made: Made) -> None:
    ended, stamped, _ = made(said="ERROR: [Errno 28] No space left on device", status=1)
    assert ended.returncode != 0
    assert not stamped
    assert ended.stdout.strip() == "ERROR: [Errno 28] No space left on device"
