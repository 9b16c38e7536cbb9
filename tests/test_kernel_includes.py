"""The include rules of the kernels: isa includes isa, engine includes isa/table.h alone, python includes the engine.

The rule is also checked on includes that it must refuse.
"""

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parent.parent / "kernels"

LEAVES = ('"tuning.h', '"cache_line.h')  # constants and address arithmetic, which include nothing of ours
MAY_INCLUDE: dict[str, tuple[str, ...]] = {
    ".": LEAVES,
    "isa": (*LEAVES, '"isa/'),
    "engine": (*LEAVES, '"engine/', '"isa/table.h'),
    "python": (*LEAVES, '"engine/', '"python/', "<nanobind/"),
}


def wrong_includes(folder: str, source: str) -> set[str]:
    """What a file in this folder of kernels/ includes and may not. The standard library has no slash in its names."""
    found = re.findall(r'#include (["<][^">]+)', source)
    ours = {name for name in found if name[0] == '"' or "/" in name}
    return {name for name in ours if not name.startswith(MAY_INCLUDE[folder])}


def test_includes_follow_the_rules() -> None:
    files = [f for f in KERNELS.rglob("*") if f.is_file()]
    wrong = {str(f): wrong_includes(str(f.parent.relative_to(KERNELS)), f.read_text("utf-8")) for f in files}
    assert {f: names for f, names in wrong.items() if names} == {}
    assert len(files) > 20


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (".", '"isa/table.h"'),
        ("isa", '"engine/call.h"'),
        ("isa", "<nanobind/nanobind.h>"),
        ("engine", '"isa/formulas.h"'),
        ("engine", '"table.h"'),
        ("engine", '"python/module.h"'),
        ("python", '"isa/maps.h"'),
    ],
)
def test_a_wrong_include_is_found(folder: str, name: str) -> None:
    assert wrong_includes(folder, f"#pragma once\n#include {name}\n#include <vector>\n")
    assert not wrong_includes(
        "engine", '#include "engine/call.h"\n#include "isa/table.h"\n#include <vector>\n'
    )
