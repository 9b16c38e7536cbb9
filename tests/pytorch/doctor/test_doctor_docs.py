"""docs/doctor.md: every cause has its section, and its code is Python."""

import ast
import re
from pathlib import Path

import pytest

from xhat.torch.doctor.findings import CAUSES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "doctor.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^#### (\S+)\n(.*?)(?=^#{2,4} |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))


def test_the_sections_are_the_causes() -> None:
    assert sorted(SECTIONS) == sorted(CAUSES)
    assert f"[{len(CAUSES)} causes](docs/doctor.md#the-causes)" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("cause", CAUSES)
def test_a_section_has_symptom_sight_remedy_code_and_sources(cause: str) -> None:
    text = SECTIONS[cause]
    for part in ("**Symptom.**", "**Seen", "**Remedy.**", "**Sources.**"):
        assert text.count(part) == 1, part
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    ast.parse(code)
    assert re.search(
        r"https://(github\.com/\S+/(issues|pull)/\d+|arxiv\.org/abs/\d{4}\.\d{5})|exactness\.md", text
    )
