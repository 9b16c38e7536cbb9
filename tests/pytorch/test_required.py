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
"""
MISSING = """
import sys
sys.modules["torch"] = None
"""
TRIED = """
try:
    import xhat.torch
except ImportError as error:
    print(error, [error.name, type(error).__name__])
"""
REMEDY = "Install one: pip install 'torch>=2.11'."


@pytest.mark.parametrize("version", ["1.13.1", "2.0.0+cu118", "2.8.0+cu128", "2.10.0"])
def test_a_torch_that_is_too_old_is_one_sentence(version: str) -> None:
    assert in_a_process(OLD.format(version=version) + TRIED).strip() == (
        f"xhat.torch: torch is version {version}, expected 2.11 or newer. {REMEDY} ['torch', 'ImportError']"
    )


@pytest.mark.parametrize("version", ["2.11.0a0+git123", "2.11rc1", "2.11", "2.15.0", "3.0.0"])
def test_a_torch_that_is_new_enough_is_imported_from(version: str) -> None:
    """The module in torch's place has nothing, and so the next import fails: past the check."""
    assert "expected 2.11" not in in_a_process(OLD.format(version=version) + TRIED)
    assert "torch" in in_a_process(OLD.format(version=version) + TRIED)


@pytest.mark.parametrize("version", ["2", "main", ""])
def test_a_torch_whose_version_has_no_numbers_is_one_sentence(version: str) -> None:
    assert in_a_process(OLD.format(version=version) + TRIED).strip() == (
        f"xhat.torch: torch is version {version!r}, expected 2.11 or newer. {REMEDY} ['torch', 'ImportError']"
    )


@pytest.mark.parametrize("place", ["torch.py", "torch/data.txt"])
def test_what_stands_in_torchs_place_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    taken = tmp_path / place if place.endswith(".py") else tmp_path / "torch"
    alone = f"""
import sys
import xhat
sys.path[:] = [{str(tmp_path)!r}]
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") == "PathFinder"]
"""
    said = in_a_process(alone + TRIED).strip()
    assert said == (
        f"xhat.torch: {taken} is imported as torch, and has no version, expected PyTorch. Rename it, or start Python "
        "in another folder. ['torch', 'ImportError']"
    )


def test_a_missing_torch_is_one_sentence() -> None:
    assert in_a_process(MISSING + TRIED).strip() == (
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
