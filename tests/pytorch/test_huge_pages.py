"""Large results are backed by huge pages, where Linux leaves the choice to the program."""

import re
from pathlib import Path

import pytest
import torch

import xhat.torch as xt
from xhat.torch import memory
from xhat.torch.memory import LARGE, ask_for_huge_pages


def flags_of(t: torch.Tensor) -> list[str]:
    """Linux's flags of the mapping that contains the middle of a tensor."""
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
    raise AssertionError("the tensor is in no mapping")


def test_large_results_are_advised_to_be_huge_pages() -> None:
    x = torch.randn(40, 8, 256, 128, requires_grad=True)  # 40 MB: above 32 MB glibc maps each tensor anew
    residual = torch.randn_like(x, requires_grad=True)
    y = xt.batch_norm(x, None, None, training=True, residual=residual, activation="relu")
    y.backward(torch.ones_like(x))
    assert x.grad is not None
    assert residual.grad is not None
    assert "hg" not in flags_of(x)  # else all tensors have it, and the test shows nothing
    for result in (y, x.grad, residual.grad):
        assert "hg" in flags_of(result)


def test_only_whole_pages_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(memory.mmap, "PAGESIZE", 4096)
    monkeypatch.setattr(memory.mmap, "MADV_HUGEPAGE", 14, raising=False)
    ask_for_huge_pages(4096 + 16, LARGE)
    ask_for_huge_pages(8192, LARGE)
    assert calls == [(8192, LARGE - 4096, 14), (8192, LARGE, 14)]


def test_nothing_is_advised_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory._madvise.cache_clear()
    try:
        assert memory._madvise() is None
        ask_for_huge_pages(0, LARGE)
    finally:
        memory._madvise.cache_clear()
