"""The links of the pages, in Markdown: the files that they name exist, and the headings inside of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def without_code(page: Path) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names by which GitHub links to the headings of a page: lower case, words joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), flags=re.MULTILINE)
    shown = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in shown}


def broken_links(page: Path) -> set[str]:
    """Links of a page to files, and to headings, that do not exist."""
    broken = set()
    for link in re.findall(r"\]\(([^)\s]+)[^)]*\)", without_code(page)):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.add(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_links_of_a_page_exist(page: Path) -> None:
    assert broken_links(page) == set()


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    text = "# A `Part`, here\n[a](page.md), [b](#a-part-here), [c](gone.md#part), [d](#gone), [e](https://example.org#x)"
    (tmp_path / "page.md").write_text(text)
    assert broken_links(tmp_path / "page.md") == {"gone.md#part", "#gone"}


def test_a_decision_has_a_number_of_its_own_which_its_title_begins_with() -> None:
    decisions = [*(ROOT / "docs" / "decisions").glob("0*.md")]
    numbers = [int(page.name[:4]) for page in decisions]
    assert len(set(numbers)) == len(decisions) > 20
    titles = [page.read_text("utf-8").split("\n")[0] for page in decisions]
    assert [t for n, t in zip(numbers, titles, strict=True) if not t.startswith(f"# {n}. ")] == []
