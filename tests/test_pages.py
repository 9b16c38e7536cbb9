"""The pages to start with, the guides and the like: their code runs in order, and prints what they show."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [
    *sorted(DOCS.glob("start/*.md")),
    *sorted(DOCS.glob("guides/*.md")),
    *(DOCS / f"{name}.md" for name in ("index", "equal-bits", "tolerances", "faq")),
]
# A block of code, and what is printed below it.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n^```\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


def differences(text: str, name: str) -> list[tuple[str, str]]:
    """(shown, printed) of each block of a page's text whose code prints something else."""
    names: dict[str, Any] = {"__name__": name}
    found = []
    for code, shown in BLOCK.findall(text):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, name, "exec"), names)
        if out.getvalue() != shown:
            found.append((shown, out.getvalue()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_prints_what_it_shows(page: Path) -> None:
    text = page.read_text("utf-8")
    for imported, needed in {"torch": "torch", "xhat.lens": "sympy"}.items():
        if re.search(rf"^import {re.escape(imported)}\b", text, flags=re.MULTILINE):
            pytest.importorskip(needed)
    assert BLOCK.search(text)
    assert differences(text, page.name) == []


def test_a_page_that_shows_something_else_is_seen() -> None:
    text = "```python\na = 1\nprint(a)\n```\n\n```\n2\n```\n\nAnd:\n\n```python\nprint(a + 1)\n```\n\n```\n2\n```\n"
    assert differences(text, "a page") == [("2\n", "1\n")]
