"""`import xhat.torch` where PyTorch is missing or too old, in interpreters of their own."""

import sys
import tomllib
from pathlib import Path

import pytest
from conftest import in_a_process

from xhat.cli import main
from xhat.torch.required import OLDEST

ROOT = Path(__file__).parents[2]
OLD = """
import sys, types
sys.modules["torch"] = torch = types.ModuleType("torch")
torch.__version__ = {version!r}
try:
    import xhat.torch
except ImportError as error:
    print(error, [error.name, type(error).__name__])
"""
MISSING = """
import sys
sys.modules["torch"] = None
try:
    import xhat.torch
except ImportError as error:
    print(error, [error.name, type(error).__name__])
"""
REMEDY = "Install one: pip install 'torch>=2.11'."


@pytest.mark.parametrize("version", ["1.13.1", "2.0.0+cu118", "2.8.0+cu128", "2.10.0"])
def test_a_torch_that_is_too_old_is_one_sentence(version: str) -> None:
    assert in_a_process(OLD.format(version=version)).strip() == (
        f"xhat.torch: torch is version {version}, expected 2.11 or newer. {REMEDY} ['torch', 'ImportError']"
    )


@pytest.mark.parametrize("version", ["2.11.0a0+git123", "2.15.0", "3.0.0"])
def test_a_torch_that_is_new_enough_is_imported_from(version: str) -> None:
    """The module in torch's place has nothing, and so the next import fails: past the check."""
    assert "expected 2.11" not in in_a_process(OLD.format(version=version))
    assert "torch" in in_a_process(OLD.format(version=version))


def test_a_missing_torch_is_one_sentence() -> None:
    assert in_a_process(MISSING).strip() == (
        f"xhat.torch: torch is not installed, expected version 2.11 or newer. {REMEDY} "
        "['torch', 'ModuleNotFoundError']"
    )


def test_the_package_requires_the_version_that_the_import_requires() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert f"torch>={'.'.join(map(str, OLDEST))}" in extras["torch"]


@pytest.mark.parametrize("error", [ModuleNotFoundError, ImportError])
def test_the_doctor_prints_the_sentence(
    error: type[ImportError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Refused:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "xhat.torch.doctor.command":
                raise error("xhat.torch: no. Install it.", name="torch")

    monkeypatch.delitem(sys.modules, "xhat.torch.doctor.command", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refused(), *sys.meta_path])
    assert main(["doctor", "a.pt"]) == 2
    assert capsys.readouterr().err == "xhat doctor: no. Install it.\n"
