"""What the build made: one exported table and no weak symbol per instruction set, its registers alone, the stub."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import in_a_process

import xhat

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "xhat"


def objects() -> dict[str, Path]:
    """The object of each instruction set, by name, from the newest build here; empty without one."""
    found = (ROOT / "build").glob("*/CMakeFiles/kernels_*.dir/kernels/isa/kernels.cpp.o")
    newest = sorted(found, key=lambda f: f.stat().st_mtime)
    return {f.parts[-4].removeprefix("kernels_").removesuffix(".dir"): f for f in newest}


needs_objects = pytest.mark.skipif(
    sys.platform != "linux" or not objects(), reason="there is no build directory with ELF objects here"
)


def printed(*command: str | Path) -> str:
    """What a tool prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_objects
def test_an_object_exports_its_table_and_no_symbol_that_a_linker_could_share() -> None:
    for isa, file in objects().items():
        symbols = [line.split() for line in printed("nm", "--demangle", file).splitlines()]
        defined = [" ".join(s[2:]) for s in symbols if len(s) > 2 and (s[1].isupper() or s[1] in "wvu")]
        assert defined == [f"xhat::isa_{isa}"]
        needed = {s[-1] for s in symbols if s[-2] in ("U", "w", "v")}
        assert needed <= {"memcpy", "memmove", "memset", "_GLOBAL_OFFSET_TABLE_"}


def test_a_shared_inline_function_would_be_seen_as_a_weak_symbol(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX", "g++")
    source = tmp_path / "inline.cpp"
    source.write_text("inline int shared(int x) { return x; }\nint (*table)(int) = shared;\n")
    try:
        subprocess.run([compiler, "-c", source, "-o", tmp_path / "inline.o"], check=True)
    except FileNotFoundError:
        pytest.skip(f"there is no {compiler} here")
    kinds = {
        line.split()[-1]: line.split()[-2]
        for line in printed("nm", "--demangle", tmp_path / "inline.o").splitlines()
    }
    assert kinds["shared(int)"] == "W" or sys.platform == "darwin"


THROWN = """
#include <cstdio>
#include <new>

#include "engine/threads.h"

bool xhat::in_forked_child() { return false; }

int main() {
    for (std::size_t from = 1; from <= 3; from++) {
        try {
            xhat::parallel(3, [=](xhat::ThreadTeam team) {
                if (team.index >= from) throw std::bad_alloc();
            });
            std::puts("ran");
        } catch (const std::bad_alloc&) {
            std::puts("thrown");
        }
    }
}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the flag for OpenMP is that of GCC and Clang")
def test_an_exception_of_a_thread_reaches_the_caller(tmp_path: Path) -> None:
    """An exception that leaves a thread of OpenMP ends the process; running out of memory must be a MemoryError."""
    source, program = tmp_path / "thrown.cpp", tmp_path / "thrown"
    source.write_text(THROWN)
    compiler = os.environ.get("CXX", "g++")
    try:
        subprocess.run(
            [compiler, "-std=c++17", "-fopenmp", f"-I{ROOT / 'kernels'}", source, "-o", program], check=True
        )
    except FileNotFoundError:
        pytest.skip(f"there is no {compiler} here")
    assert printed(program).split() == ["thrown", "thrown", "ran"]


@needs_objects
def test_an_object_uses_the_registers_of_its_instruction_set_only() -> None:
    """Where CXXFLAGS raise the baseline, an older processor would stop with an illegal instruction."""
    used = {isa: set(re.findall(r"%([yz])mm", printed("objdump", "-d", f))) for isa, f in objects().items()}
    if "v2" in used:
        assert used == {"v2": set(), "v3": {"y"}, "v4": used["v4"] | {"z"}}


def test_the_stub_is_the_one_that_the_build_made() -> None:
    made = Path(str(importlib.util.find_spec("xhat._kernels").origin)).parent / "_kernels.pyi"  # type: ignore[union-attr]
    assert made.read_text() == (PACKAGE / "_kernels.pyi").read_text(), f"copy {made} to {PACKAGE}"


def test_the_version_is_the_packages() -> None:
    assert xhat.__version__ == xhat.config()["version"] == importlib.metadata.version("xhat")


def test_missing_kernels_are_named() -> None:
    """Python's own words for it are "most likely due to a circular import"."""
    code = """
import sys
sys.modules["xhat._kernels"] = None  # as if there was no such file
try:
    import xhat
except ImportError as error:
    print(error)
"""
    said = in_a_process(code)
    assert said.startswith("xhat: the compiled kernels can't be loaded (")
    assert "circular" not in said and "pip install ." in said


def test_kernels_that_were_not_compiled_are_named_in_one_sentence(tmp_path: Path) -> None:
    """The sources alone, as in a clone without a build."""
    left_out = shutil.ignore_patterns("_kernels.*.so", "_kernels*.pyd", "__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "xhat", ignore=left_out)
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
sys.meta_path = [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen")]
try:
    import xhat
except ImportError as error:
    print(error)
"""
    assert in_a_process(code).strip() == (
        "xhat: the compiled kernels can't be loaded (No module named 'xhat._kernels'). They are built for one version "
        "of Python and one kind of processor. Install xhat again with this Python: pip install ., in a clone."
    )


def test_the_version_of_sources_without_an_installation_is_unknown() -> None:
    code = """
import importlib.metadata
def version(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
import xhat
print(xhat.config()["version"], xhat.__version__)
from xhat import cli
cli.main(["--version"])
"""
    assert in_a_process(code).split() == ["unknown", "unknown", "xhat", "unknown"]
