"""The page in Chromium: keyboard, light and dark colours, every width, and 2,048 channels."""

import pytest
from lens.reporter import browsing
from lens.reporter.browsing import CONTRAST, Open
from lens.reporter.page_data import batch, strange

pytestmark = pytest.mark.browser
running, visit, show = browsing.running, browsing.visit, browsing.show  # the fixtures


def test_everything_is_reached_by_keyboard(show: Open) -> None:
    page = show(**batch(20))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate(
                "(e => e.id || e.dataset.switch || e.dataset.kind || e.name || e.type)(document.activeElement)"
            )
        )
    switches = {"forward", "gradient", "direct", "mean", "variance", "zero"}
    assert (
        switches | {"theme", "channel", "play", "reset", "x", "dy", "number", "range", "correction", "table"}
        <= seen
    )
    page.focus('[data-switch="mean"]')
    page.keyboard.press("Space")
    assert page.get_attribute('[data-switch="mean"]', "aria-pressed") == "false"
    page.focus("#table")
    for key, row in (("ArrowDown", "1"), ("End", "19"), ("ArrowUp", "18"), ("Home", "0")):
        page.keyboard.press(key)
        assert page.locator("#channel").input_value() == row
        assert page.locator('tr[aria-selected="true"]').get_attribute("data-row") == row


TEXTS = [
    "h1", "#facts span", ".finding .reason", "#source", ".node .symbol", ".node .note", ".node .value.forward",
    ".node .value.gradient", ".local", ".legend", ".say", ".math .forward", ".term.direct", ".term.mean",
    ".term.variance", "td", "th button", 'tr[aria-selected="true"] td', "[data-switch]", "figcaption", ".tick",
]  # fmt: skip


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_are_readable_in_light_and_dark(show: Open, dark: bool) -> None:
    page = show(**strange(), dark=dark)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    contrasts = dict(page.evaluate(CONTRAST, TEXTS))
    assert {name: value for name, value in contrasts.items() if value < 4.5} == {}
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != background


# Elements that exceed their node, and texts smaller than 9 pixels.
STICKING_OUT = """() => [...document.querySelectorAll('.node')].flatMap(node => {
  const box = node.querySelector('rect').getBoundingClientRect();
  return [...node.querySelectorAll('text')].filter(text => text.textContent).filter(text => {
    const inner = text.getBoundingClientRect();
    return inner.right > box.right + 1 || inner.left < box.left - 1 || inner.bottom > box.bottom + 1;
  }).map(text => node.dataset.node + ': ' + text.textContent);
})"""
SMALL = """() => [...document.querySelectorAll('#graph text')].filter(text =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a < 9).map(text => text.textContent)"""


@pytest.mark.parametrize("width", [390, 700, 1000, 1020, 1240])
def test_every_width_shows_the_graph_whole_and_needs_no_scrolling_sideways(show: Open, width: int) -> None:
    page = show(**batch(20), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    assert page.evaluate(SMALL) == []
    page.click("#play")
    page.locator(".handle.x").first.press("ArrowRight")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_2048_channels_stay_light(show: Open) -> None:
    """Only visible rows exist, and a selection redraws no other rows."""
    page = show(**batch(2048, 6, 3))
    elements = "document.querySelectorAll('*').length - document.querySelectorAll('option').length"
    few = page.evaluate(elements)
    assert few < 2000
    assert page.locator("tr[data-row]").count() < 50
    page.focus("#table")
    page.keyboard.press("End")
    assert page.locator('tr[aria-selected="true"]').get_attribute("data-row") == "2047"
    assert page.locator('tr[data-row="2047"]').is_visible()
    assert page.evaluate(elements) < few + 100
    page.click('th[data-key="kept"] button')
    assert page.locator("tr[data-row]").count() < 50
