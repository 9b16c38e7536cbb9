"""The doctor's page in Chromium: light and dark, phone and desk, keyboard, print, and without JavaScript."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lens.reporter import browsing
from lens.reporter.browsing import CONTRAST, Open
from pytorch.doctor.diagnosis_data import HOSTILE, awkward, diagnosis, layer

from xhat.torch.doctor.page import render

pytestmark = pytest.mark.browser
running, visit = browsing.running, browsing.visit  # the fixtures


@pytest.fixture
def show(visit: Open, tmp_path: Path) -> Callable[..., Any]:
    """Open the page about a diagnosis."""

    def opened(given: dict[str, Any], **options: Any) -> Any:
        file = tmp_path / "doctor.html"
        file.write_text(render(given), encoding="utf-8")
        return visit(file, **options)

    return opened


TEXTS = [
    "#verdict .badge", "h1", ".chips span", "#modes .say", "#modes .value", "summary", ".harmful .badge",
    ".risk .badge", ".note .badge", ".finding .cause", ".finding .where code", ".finding dt", ".finding pre code",
    ".proof b", "tbody th code", "tbody th span", "td", "thead th", "#not-judged dd", "footer p",
]  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_are_readable_in_light_and_dark(show: Open, dark: bool) -> None:
    page = show(awkward(), dark=dark)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 27)") == dark
    contrasts = dict(page.evaluate(CONTRAST, TEXTS))
    assert {name: value for name, value in contrasts.items() if value < 4.5} == {}
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


def test_a_healthy_verdict_is_readable_too(show: Open) -> None:
    for dark in (False, True):
        page = show(diagnosis(healthy=True, findings=[]), dark=dark)
        assert page.evaluate(CONTRAST, ["#verdict .badge"])[0][1] >= 4.5


# Texts that are cut off, or overlap the edge of the element that holds them.
SPILLED = """() => [...document.querySelectorAll('h1, h3, td, th, dd, .chips span, .badge, pre, .card')]
  .filter(e => e.offsetParent && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== 'inline')
  .map(e => e.tagName + ': ' + e.textContent.trim().slice(0, 40))"""


@pytest.mark.parametrize("width", [360, 390, 700, 830, 1240])
@pytest.mark.parametrize("given", [diagnosis(), awkward()], ids=["plain", "awkward"])
def test_no_width_needs_scrolling_sideways(show: Open, width: int, given: dict[str, Any]) -> None:
    page = show(given, width=width)
    page.eval_on_selector_all("details", "all => all.forEach(e => e.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(SPILLED) == []


def test_bars_are_as_long_as_their_values(show: Open) -> None:
    modes = {"evaluation": 2.0, "batch": 1.0, "pooled": 0.5, "train": float("inf")}
    page = show(diagnosis(modes=modes))
    widths = page.eval_on_selector_all(
        "#modes .track i", "all => all.map(e => e.getBoundingClientRect().width)"
    )
    track = page.eval_on_selector("#modes .track", "e => e.getBoundingClientRect().width")
    assert [width / track for width in widths] == pytest.approx([1, 0.5, 0.25, 1], abs=1e-3)
    backgrounds = page.eval_on_selector_all(
        "#modes i", "all => all.map(e => getComputedStyle(e).backgroundImage)"
    )
    assert [name.startswith("repeating") for name in backgrounds] == [False, False, False, True]


def test_200_layers_with_hostile_names_are_rows_of_one_table(show: Open) -> None:
    page = show(awkward())
    assert page.title().startswith("</script><img")
    assert page.locator("#layers tbody tr").count() == 200
    assert page.locator("#layers tbody th code").first.inner_text().startswith(HOSTILE[:20])
    page = show(awkward(), width=360)  # cards, and a table for a screen reader still
    assert page.get_by_role("row").count() >= 200
    assert page.get_by_role("rowheader").count() == 200


def test_everything_is_reached_by_keyboard(show: Open) -> None:
    page = show(diagnosis(layers=[layer("bn1")]))
    seen = []
    for _ in range(8):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("(e => e.id || e.getAttribute('href') || e.textContent)(document.activeElement)")
        )
    assert seen[:6] == [
        "#findings",
        "theme",
        "How to read them",
        "The numbers behind it",
        "#finding-1",
        "What the columns mean",
    ]
    page.focus("#modes summary")
    page.keyboard.press("Enter")
    assert page.locator("#modes .reading").is_visible()
    assert page.eval_on_selector_all("h1, h2, h3", "all => all.map(e => e.tagName).join(' ')").startswith(
        "H1 H2 H2 H3 H2"
    )


def test_without_javascript_the_page_is_whole_and_has_no_dead_button(show: Open) -> None:
    page = show(diagnosis(), java_script_enabled=False, dark=True)
    assert page.locator("#theme").is_hidden()
    assert page.locator(".finding").is_visible()
    assert page.get_by_text("1.58", exact=True).count() == 2


def test_print_is_light_and_shows_what_is_folded(show: Open) -> None:
    page = show(diagnosis(), dark=True)
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(247, 246, 243)"
    assert page.locator(".evidence dd").first.is_visible()
    assert page.locator("#theme").is_hidden()
