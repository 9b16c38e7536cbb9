"""What the build made: one exported table and no weak symbol per instruction set, its registers alone, the stub."""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
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


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake here")
@pytest.mark.parametrize(
    ("abi", "refused"), [("cpython-314t-x86_64-linux-gnu", True), ("cpython-314-x86_64-linux-gnu", False)]
)
def test_a_free_threaded_python_is_refused_by_the_build(abi: str, refused: bool, tmp_path: Path) -> None:
    """In one sentence, before anything is compiled. scikit-build-core hands the name on."""
    without_nanobind = ["-DCMAKE_DISABLE_FIND_PACKAGE_nanobind=ON"]  # where the build stops in any case
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-DSKBUILD=2", f"-DSKBUILD_SOABI={abi}"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", *without_nanobind]
    configured = subprocess.run(command, capture_output=True, text=True, check=False)
    said = " ".join(configured.stderr.split())
    assert configured.returncode != 0
    assert ("xhat does not support free-threaded Python (cpython-314t)" in said) == refused
    assert ("nanobind" in said) == (not refused), said


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


def refusal(package: Path, before: str = "") -> str:
    """What `import xhat` raises, of a package in another place, after some statements."""
    code = f"""
import sys
sys.path.insert(0, {str(package.parent)!r})
sys.meta_path = [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen")]
{before}
try:
    import xhat
except ImportError as error:
    print(error)
"""
    return in_a_process(code).strip()


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """The sources alone, as in a clone without a build."""
    left_out = shutil.ignore_patterns("_kernels.*.so", "_kernels*.pyd", "__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path / "xhat", ignore=left_out))


THIS_PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {platform.machine()}"
AGAIN = "Install xhat again with this Python: python -m pip install --force-reinstall xhat, or . in a clone."


def test_missing_kernels_are_named() -> None:
    """Python's own words for it are "most likely due to a circular import"."""
    said = refusal(PACKAGE, 'sys.modules["xhat._kernels"] = None  # as if there was no such file')
    assert said.startswith("xhat: the compiled kernels can't be loaded (")
    assert "circular" not in said and said.endswith(AGAIN)


def test_kernels_that_were_not_compiled_are_named_in_one_sentence(sources: Path) -> None:
    assert refusal(sources) == (
        f"xhat: there are no compiled kernels in {sources}. Compile them: python -m pip install ., in a clone of xhat, "
        "and start Python outside of its folder src."
    )


@pytest.mark.parametrize("file", ["_kernels.cpython-39-riscv64-linux-gnu.so", "_kernels.cp39-win_arm64.pyd"])
def test_kernels_for_another_python_are_named(sources: Path, file: str) -> None:
    (sources / file).touch()
    assert refusal(sources) == f"xhat: the compiled kernels, {file}, are not for {THIS_PYTHON}. {AGAIN}"


@pytest.mark.skipif(sys.platform != "linux", reason="the file is made as on Linux")
def test_kernels_for_another_processor_are_named(sources: Path) -> None:
    """The loader's words for it are "No such file or directory"."""
    kernels = bytearray(Path(xhat._kernels.__file__).read_bytes())  # type: ignore[attr-defined]
    kernels[18:20] = (0xF3).to_bytes(2, "little")  # e_machine: RISC-V
    file = "_kernels" + EXTENSION_SUFFIXES[0]
    (sources / file).write_bytes(kernels)
    assert refusal(sources) == f"xhat: the compiled kernels, {file}, are not for {THIS_PYTHON}. {AGAIN}"


@pytest.mark.skipif(sys.platform != "linux", reason="the file is made as on Linux")
def test_a_missing_runtime_of_openmp_is_named(sources: Path) -> None:
    kernels = Path(xhat._kernels.__file__).read_bytes()  # type: ignore[attr-defined]
    if b"\0libgomp.so.1\0" not in kernels:
        pytest.skip("the kernels use another runtime here")
    file = sources / ("_kernels" + EXTENSION_SUFFIXES[0])
    file.write_bytes(kernels.replace(b"\0libgomp.so.1\0", b"\0libgomp.so.0\0"))
    assert refusal(sources) == (
        "xhat: the compiled kernels need OpenMP's runtime, libgomp, which is not installed. Install it: apt install "
        "libgomp1, or dnf install libgomp."
    )


def test_the_words_of_the_loader_of_macos_are_read_too() -> None:
    from xhat.installation import _what_is_missing

    said = "dlopen(/x/xhat/_kernels.abi3.so, 0x0002): Library not loaded: @rpath/libomp.dylib\n  Referenced from: ..."
    assert _what_is_missing(said) == (
        "xhat: the compiled kernels need OpenMP's runtime, libomp, which is not installed. Install it: apt install "
        "libomp5, or brew install libomp."
    )


def test_a_missing_numpy_is_named() -> None:
    missing = """
class Nothing:
    __module__ = "_frozen"
    def find_spec(name, path=None, target=None):
        if name == "numpy":
            raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
sys.meta_path.insert(0, Nothing)
"""
    assert refusal(PACKAGE, missing) == (
        "xhat: NumPy is not installed. Install it: python -m pip install numpy."
    )


@pytest.mark.parametrize("place", ["numpy.py", "numpy/data.txt"])
def test_what_stands_in_numpys_place_is_named(tmp_path: Path, place: str) -> None:
    """A script of this name, or a folder, in the folder where Python was started."""
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    alone = f"sys.path[:] = [{str(tmp_path)!r}, *(p for p in sys.path if 'site-packages' not in p)]"
    taken = tmp_path / place if place.endswith(".py") else tmp_path / "numpy"
    assert refusal(PACKAGE, alone) == (
        f"xhat: {taken} is imported as numpy, and has no ndarray, expected NumPy. Rename it, or start Python in "
        "another folder."
    )


def test_a_folder_in_the_kernels_place_is_named(sources: Path) -> None:
    (sources / "_kernels").mkdir()
    assert refusal(sources) == (
        f"xhat: the compiled kernels can't be loaded ({sources / '_kernels'} is a folder). {AGAIN}"
    )


def test_an_archive_is_named(sources: Path) -> None:
    archive = Path(shutil.make_archive(str(sources.parent / "packed"), "zip", sources.parent, "xhat"))
    assert refusal(archive / "xhat") == (
        f"xhat: compiled kernels can't be loaded from an archive, {archive}. Unpack it, or install xhat."
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
