"""The site that `make docs` has built: its links, its reference, and how its pages read in Chromium, without a network.

Without a built site there is nothing to test here; `make docs` builds it and runs this file.
"""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from lens.reporter import chromium

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "docs" / "html"
PHONE, DESK = 390, 1280  # widths in pixels
LOCAL = {"file", "data", "blob"}
# Without the sources in colours, which viewcode makes.
PAGES = sorted(p for p in SITE.rglob("*.html") if "_modules" not in p.parts)

pytestmark = pytest.mark.skipif(not PAGES, reason="there is no built site; make docs builds it")


class Page(HTMLParser):
    """The anchors of a page, and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.without_alt: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {name for name in (found.get("id"), found.get("name")) if name}
        self.links |= {link for link in (found.get("href"), found.get("src")) if link}
        if tag == "img" and not found.get("alt"):
            self.without_alt.append(str(found.get("src")))


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    """Every page of the site, read once."""
    return {path: Page(path) for path in SITE.rglob("*.html")}


def broken(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """Links of a page to files, and to places in pages, that the site does not have."""
    lost = []
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        known = pages.get(target)
        if not target.is_file() or (
            known and parts.fragment and unquote(parts.fragment) not in known.anchors
        ):
            lost.append(link)
    return lost


def test_every_link_of_the_site_has_a_target(pages: dict[Path, Page]) -> None:
    lost = {str(path.relative_to(SITE)): broken(path, page, pages) for path, page in pages.items()}
    assert {name: links for name, links in lost.items() if links} == {}


def test_a_link_without_a_target_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(
        '<h1 id="top"></h1><a href="#top"><a href="#gone"><a href="page.html#top"><img src="gone.png">'
    )
    page = Page(path)
    assert sorted(broken(path, page, {path: page})) == ["#gone", "gone.png"]
    assert page.without_alt == ["gone.png"]


def test_every_picture_has_a_text_in_its_place(pages: dict[Path, Page]) -> None:
    assert {str(path): page.without_alt for path, page in pages.items() if page.without_alt} == {}


def test_every_formula_is_mathml_without_a_rest_of_latex() -> None:
    formulas = [
        f for page in PAGES for f in re.findall(r"<math.*?</math>", page.read_text("utf-8"), flags=re.DOTALL)
    ]
    assert len(formulas) > 100
    assert [f for f in formulas if re.search(r"\\|<mi>&(amp;)?</mi>", f)] == []


@pytest.mark.parametrize(
    ("latex", "said"),
    [
        (r"\text{<b>}", r"The formula '\\text{<b>}' can't be MathML (ParseError)."),
        (r"\left( x", r"The formula '\\left( x' can't be MathML (ExtraLeftOrMissingRightError)."),
        (r"\undefined{x}", r"The formula '\\undefined{x}' has \undefined, which latex2mathml does not know."),
    ],
)
def test_a_formula_that_cannot_be_shown_is_named(
    latex: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = pytest.importorskip("docutils.nodes")
    errors = pytest.importorskip("sphinx.errors")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    mathml = pytest.importorskip("mathml").mathml
    assert mathml(nodes.math("", r"\{x < 1\}"), "inline").count("&#x0003C;") == 1
    with pytest.raises(errors.ExtensionError, match=re.escape(said)):
        mathml(nodes.math("", latex), "inline")


# ------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with chromium.browser() as found:
        yield found


def watched(page: Any) -> list[str]:
    """A list that gains the errors, messages and failed requests of a page, and requests that leave the disk."""
    found: list[str] = []
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("console", lambda message: found.append(message.text))
    page.on("request", lambda r: urlsplit(r.url).scheme in LOCAL or found.append(r.url))
    page.on("requestfailed", lambda request: found.append(f"{request.url} failed"))
    return found


def troubles(running: Any, paths: list[Path]) -> list[str]:
    """What goes wrong where pages are read from the disk, and the pages that are wider than the window."""
    page = running.new_page()
    found = watched(page)
    for path in paths:
        page.set_viewport_size({"width": PHONE, "height": 900})
        page.goto(path.as_uri())
        for width in (PHONE, DESK):
            page.set_viewport_size({"width": width, "height": 900})
            if page.evaluate("document.documentElement.scrollWidth") > width:
                found.append(f"{path.name} is wider than {width}")
    page.close()
    return found


@pytest.mark.browser
def test_a_page_is_read_without_a_network_and_fits_the_window(running: Any) -> None:
    assert troubles(running, PAGES) == []


@pytest.mark.browser
def test_a_request_and_an_error_are_seen(running: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(
        '<!doctype html><img src="https://example.org/a.png"><script>console.error("mine")</script>'
        f'<p style="width: {PHONE + 50}px">wide'
    )
    seen = troubles(running, [page])
    assert {"https://example.org/a.png", "mine", f"page.html is wider than {PHONE}"} <= set(seen)
    assert f"page.html is wider than {DESK}" not in seen


@pytest.mark.browser
def test_the_search_finds_a_page_without_a_network(running: Any) -> None:
    page = running.new_page()
    found = watched(page)
    page.goto((SITE / "search.html").as_uri() + "?q=recalibrate")
    page.wait_for_selector("ul.search li a")
    links = page.eval_on_selector_all("ul.search li a", "all => all.map(a => a.href)")
    assert any("xhat.torch.recalibrate" in link for link in links)
    page.close()
    assert found == []
