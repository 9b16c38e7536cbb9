"""Page faults: large results ask for huge pages; recycled memory ends them, or says why not."""

import ctypes
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import in_a_process

import xhat.torch as xt
from xhat.torch import memory
from xhat.torch.memory import LARGE, SETTINGS, MemoryReuse, ask_for_huge_pages, reuse_memory

FAULTS = """
import json, resource, sys
import torch
from xhat.torch.memory import reuse_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)  # 64 MB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.ones(1)
mapped = [faults() for _ in range(6)]
report = reuse_memory()
kept = [faults() for _ in range(40)]
print(json.dumps([report.active, resource.getpagesize(), mapped, kept]))
"""


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """The report of a process is kept; a test begins without one, and leaves none behind."""
    reuse_memory.cache_clear()
    yield
    reuse_memory.cache_clear()


class Library:
    """A C library that takes or refuses settings, and says where its functions come from."""

    def __init__(self, files: dict[str, bytes], refuses: tuple[int, ...] = ()) -> None:
        self.malloc, self.gnu_get_libc_version = (ctypes.c_void_p(n) for n in (1, 2))
        self.files, self.refuses = files, refuses
        self.asked: list[tuple[int, int]] = []

    def dladdr(self, address: ctypes.c_void_p, place: object) -> int:
        place._obj.file = self.files["malloc" if address.value == 1 else "libc"]  # type: ignore[attr-defined]
        return 1

    def mallopt(self, number: int, value: int) -> int:
        self.asked.append((number, value))
        return int(number not in self.refuses)


def use(library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a library in the place of the process's own."""
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)


def test_page_faults_of_large_tensors_end() -> None:
    active, page, mapped, kept = json.loads(in_a_process(FAULTS))
    if not active:
        pytest.skip("this process has no glibc, or another malloc")
    pages = (64 << 20) / page
    assert min(mapped) > 0.9 * pages  # or there would be nothing to end
    assert sum(kept[20:]) < 0.01 * pages  # the first ones still look for their places


def test_the_report_says_what_was_set_and_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library({"malloc": b"libc.so.6", "libc": b"libc.so.6"})
    use(library, monkeypatch)
    report = reuse_memory()
    assert report.active
    assert library.asked == [(-4, 0), (-1, -1), (-2, 64 << 20)]
    assert "mallopt: M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1, M_TOP_PAD=67108864" in repr(report)
    assert "resident memory does not shrink below its peak, by now " in repr(report)
    assert reuse_memory() is report
    assert len(library.asked) == 3  # a second call changes nothing


def test_another_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library({"malloc": b"/usr/lib/libjemalloc.so.2", "libc": b"libc.so.6"})
    use(library, monkeypatch)
    report = reuse_memory()
    assert not report.active
    assert library.asked == []
    assert repr(report) == (
        "reuse_memory: nothing was set: malloc is not glibc's, but that of /usr/lib/libjemalloc.so.2, "
        "which has settings of its own."
    )


def test_a_refused_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Library({"malloc": b"libc", "libc": b"libc"}, refuses=(-4,)), monkeypatch)
    report = reuse_memory()
    assert not report.active
    assert repr(report) == (
        "reuse_memory: M_TRIM_THRESHOLD=-1, M_TOP_PAD=67108864 was set: glibc refused M_MMAP_MAX."
    )


@pytest.mark.parametrize("error", [TypeError, OSError])
def test_without_glibc_nothing_happens(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: None) -> None:
        raise error

    for library in (refuse, lambda name: SimpleNamespace()):  # as on Windows; as with musl and on macOS
        monkeypatch.setattr(memory.ctypes, "CDLL", library)
        reuse_memory.cache_clear()
        assert reuse_memory() == MemoryReuse(
            reason="this is not glibc, and other C libraries have no such settings."
        )


PRELOADED = "from xhat.torch.memory import reuse_memory; print(reuse_memory())"


def test_a_preloaded_malloc_is_seen() -> None:
    compiler = shutil.which("c++")
    found = compiler and subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True
    )
    if not sys.platform.startswith("linux") or not found or not found.stdout.startswith("/"):
        pytest.skip("no library with a malloc of its own is at hand")
    library = found.stdout.strip()
    said = in_a_process(PRELOADED, LD_PRELOAD=library, ASAN_OPTIONS="detect_leaks=0")
    assert "malloc is not glibc's, but that of " in said
    assert "libasan" in said


def test_the_settings_are_those_of_the_header() -> None:
    header = Path("/usr/include/malloc.h")
    if not header.exists() or "M_MMAP_MAX" not in (text := header.read_text()):
        pytest.skip("glibc's header is not at hand")
    known = {name: int(number) for name, number in re.findall(r"#define (M_\w+)\s+(-?\d+)", text)}
    assert {name: number for name, (number, _) in SETTINGS.items()}.items() <= known.items()


def flags_of(t: torch.Tensor) -> list[str]:
    """What Linux notes of the mapping that holds the middle of a tensor."""
    smaps = Path("/proc/self/smaps")
    if not Path("/sys/kernel/mm/transparent_hugepage").exists() or not smaps.exists():
        pytest.skip("this system has no transparent huge pages")
    middle, inside = t.data_ptr() + t.nbytes // 2, False
    for line in smaps.read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            first, last = (int(end, 16) for end in span.groups())
            inside = first <= middle < last
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("the tensor lies in no mapping")


def test_large_results_ask_for_huge_pages() -> None:
    x = torch.randn(40, 8, 256, 128, requires_grad=True)  # 40 MB: above 32 MB glibc maps every tensor afresh
    residual = torch.randn_like(x, requires_grad=True)
    y = xt.batch_norm(x, None, None, training=True, residual=residual, activation="relu")
    y.backward(torch.ones_like(x))
    assert x.grad is not None
    assert residual.grad is not None
    assert "hg" not in flags_of(x)  # or there would be nothing to ask for
    for made in (y, x.grad, residual.grad):
        assert "hg" in flags_of(made)


def test_only_whole_pages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(memory.mmap, "PAGESIZE", 4096)
    monkeypatch.setattr(memory.mmap, "MADV_HUGEPAGE", 14, raising=False)
    ask_for_huge_pages(4096 + 16, LARGE)
    ask_for_huge_pages(8192, LARGE)
    assert asked == [(8192, LARGE - 4096, 14), (8192, LARGE, 14)]


def test_elsewhere_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory._madvise.cache_clear()
    try:
        assert memory._madvise() is None
        ask_for_huge_pages(0, LARGE)
    finally:
        memory._madvise.cache_clear()
