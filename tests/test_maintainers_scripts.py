"""The scripts in tools/ refuse what they can't do in one sentence, before they make or download anything."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("bash") or not TOOLS.exists(),
    reason="the scripts are for bash on Linux",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout whose path has a space, with the scripts alone."""
    folder = tmp_path / "a checkout"
    shutil.copytree(TOOLS, folder / "tools")
    return folder


def run(place: Path, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
    """Status and standard error, beside a Python that does not run, as pyenv has for versions that are not there."""
    stub = place / "python-that-is-none"
    stub.write_text("#!/bin/sh\nexit 127\n")
    stub.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(place), **variables}
    done = subprocess.run(
        ["bash", place / "tools" / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout == ""
    assert sorted(path.name for path in place.iterdir()) == [stub.name, "tools"]  # nothing was made
    return done.returncode, done.stderr.replace(f"{place}/", "")


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        ("arm64.sh", ["all"], "tools/arm64.sh: there is no mode 'all', expected survey or tests."),
        ("wheels.sh", ["tests"], "tools/wheels.sh: there is no mode 'tests', expected build or nothing."),
        ("pythons.sh", ["x.whl"], "tools/pythons.sh: there is no file x.whl, expected a wheel."),
        (
            "torch_versions.sh",
            ["--help"],
            "tools/torch_versions.sh: '--help' is no version, expected some: "
            "make test-torch TORCH_VERSION='2.11.0 2.14.1'",
        ),
        (
            "torch_versions.sh",
            [],
            "tools/torch_versions.sh: got no version, expected some: make test-torch TORCH_VERSION='2.11.0 2.14.1'",
        ),
    ],
)
def test_wrong_arguments_are_one_sentence(
    place: Path, script: str, arguments: list[str], sentence: str
) -> None:
    assert run(place, script, *arguments) == (2, sentence + "\n")


@pytest.mark.parametrize(
    ("script", "arguments", "variable", "sentence"),
    [
        ("compilers.sh", ["nocc"], "PYTHON", "there is no nocc here."),
        ("compilers.sh", ["true"], "PYTHON", "{stub} can't make an environment here: PYTHON names another."),
        ("pythons.sh", [], "PYTHONS", "there is no {stub} here."),
    ],
)
def test_missing_programs_are_one_sentence(
    place: Path, script: str, arguments: list[str], variable: str, sentence: str
) -> None:
    stub = "./python-that-is-none"
    status, said = run(place, script, *arguments, **{variable: stub})
    assert (status, said) == (69, f"tools/{script}: {sentence.format(stub=stub)}\n")


def test_an_environment_without_xhat_is_named_by_its_path(place: Path) -> None:
    status, said = run(place, "torch_versions.sh", "2.13.0", VENV="/nowhere")
    assert status == 69
    assert said.startswith(
        "tools/torch_versions.sh: there is no xhat in /nowhere/bin/python. Run make test first"
    )


@pytest.mark.parametrize("script", ["arm64.sh", "old_cpu.sh"])
def test_a_python_without_xhat_is_refused_before_a_download(place: Path, script: str) -> None:
    status, said = run(place, script, PYTHON="./python-that-is-none")
    assert status == 69 and said.count("\n") == 1
    if "this machine is" not in said:  # it is Debian on x86-64
        assert said.startswith(
            f"tools/{script}: there is no xhat in ./python-that-is-none. Run make test first"
        )
