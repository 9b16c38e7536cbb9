"""The report in a real, headless Chromium: what is seen, switched, moved and typed, against NumPy's numbers."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens import chromium
from lens.page_data import HOSTILE, batch, strange

from xhat.lens import graph, report
from xhat.lens.report_data import layer_numbers
from xhat.lens.report_page import page as page_of

pytestmark = pytest.mark.browser

Open = Callable[..., Any]
PATHS = ("direct", "mean", "variance")


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with chromium.browser() as found:
        yield found


@pytest.fixture
def show(running: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page about these arrays, or these layers; any error or request of its own fails the test."""
    troubles: list[str] = []
    contexts = []

    def opened(
        layers: Any = None, width: int = 1240, dark: bool = False, title: str = "t", **arrays: Any
    ) -> Any:
        file = tmp_path / "page.html"
        if layers is None:
            report(**arrays, title=title, path=file)
        else:
            file.write_text(page_of(layers, title), encoding="utf-8")
        scheme = "dark" if dark else "light"
        context = running.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("request", lambda request: request.url == file.as_uri() or troubles.append(request.url))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def shown(page: Any, node: str, kind: str) -> float:
    """The number at a node of the graph."""
    return float(page.locator(f'[data-node="{node}"] .{kind}').get_attribute("data-value"))


def formula(page: Any, name: str) -> float:
    """A result beside the formulas of play mode."""
    return float(page.locator(f'[data-formula="{name}"]').get_attribute("data-value"))


def playing(page: Any) -> tuple[Any, Any]:
    """x and dy of the batch in play."""
    x, dy = (
        page.eval_on_selector_all(
            f".handle.{kind}", "all => all.map(e => Number(e.getAttribute('aria-valuenow')))"
        )
        for kind in ("x", "dy")
    )
    return np.array(x)[:, None], np.array(dy)[:, None]


def check_play(
    page: Any, chosen: int, gamma: float, beta: float, eps: float = 1e-5, correction: int = 0
) -> None:
    """All that play mode shows, against the graph's traversal in NumPy."""
    x, dy = playing(page)
    e = graph.evaluate(x, dy, [gamma], [beta], eps=eps, correction=correction)
    expected = {name: e.values[name][0] for name in ("mu", "var", "rstd")}
    expected |= {"xhat": e.values["xhat"][chosen, 0], "y": e.values["y"][chosen, 0]}
    expected |= {"dbeta": e.gradients["beta"][0], "dgamma": e.gradients["gamma"][0]}
    expected["dx"] = e.gradients["x"][chosen, 0]
    for name, value in expected.items():
        assert formula(page, name) == pytest.approx(value, rel=1e-9, abs=1e-15), name
    totals = page.eval_on_selector_all(".total", "all => all.map(e => Number(e.dataset.value))")
    np.testing.assert_allclose(totals, e.gradients["x"][:, 0], rtol=1e-9, atol=1e-14)
    for node in ("mu", "var", "rstd", "gamma", "beta"):
        assert shown(page, node, "gradient") == pytest.approx(e.gradients[node][0], rel=1e-6, abs=1e-12), node
    assert shown(page, "x", "gradient") == pytest.approx(np.linalg.norm(e.gradients["x"]), rel=1e-9)
    assert "Playing" in page.locator("#source").inner_text()


# --------------------------------------------------------------------------------------------------- graph


@pytest.mark.parametrize("channel", [0, 3])
def test_the_graph_shows_numpys_numbers(show: Open, channel: int) -> None:
    b = batch()
    b["gamma"][3] *= -1
    page = show(**b, eps=1e-3, correction=1)
    page.select_option("#channel", str(channel))
    e = graph.evaluate(b["x"], b["dy"], b["gamma"], b["beta"], eps=1e-3, correction=1)
    for node in ("mu", "var", "rstd", "gamma", "beta"):
        assert shown(page, node, "forward") == pytest.approx(e.values[node][channel], rel=1e-12)
        assert shown(page, node, "gradient") == pytest.approx(e.gradients[node][channel], rel=1e-6)
    for node in ("x", "xhat", "y"):
        expected = np.linalg.norm(e.gradients[node][:, channel])
        assert shown(page, node, "gradient") == pytest.approx(expected, rel=1e-6)
    direct = np.linalg.norm(e.paths.direct[:, channel])
    for edge, path in (("x xhat", "direct"), ("x mu", "mean"), ("x var", "variance")):
        share = float(page.locator(f'[data-edge="{edge}"]').get_attribute("data-share"))
        assert share == pytest.approx(np.linalg.norm(getattr(e.paths, path)[:, channel]) / direct, rel=1e-6)


def test_the_path_switches_add_up_the_chosen_paths(show: Open) -> None:
    b = batch()
    page = show(**b)
    e = graph.evaluate(b["x"], b["dy"], b["gamma"], b["beta"])
    for on in itertools.product([True, False], repeat=3):
        for name, pressed in zip(PATHS, on, strict=True):
            button = page.locator(f'[data-switch="{name}"]')
            if (button.get_attribute("aria-pressed") == "true") != pressed:
                button.click()
            off = page.locator(f'.edge.off[data-path="{name}"]').count()
            assert (off == 0) == pressed
        dx = sum(getattr(e.paths, name)[:, 0] for name, pressed in zip(PATHS, on, strict=True) if pressed)
        expected = np.linalg.norm(dx) if any(on) else 0
        assert shown(page, "x", "gradient") == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_forward_and_gradient_are_switched_and_drawn_in_their_colours(show: Open) -> None:
    page = show(**batch())
    for kind in ("forward", "gradient"):
        arrows = page.locator(f'[data-edge="x xhat"] .{kind}')
        assert arrows.is_visible()
        page.click(f'[data-switch="{kind}"]')
        assert not arrows.is_visible()
        page.click(f'[data-switch="{kind}"]')
    tone = "e => getComputedStyle(e).stroke"
    forward, gradient = (
        page.eval_on_selector(f'[data-edge="x xhat"] .{k} .shaft', tone) for k in ("forward", "gradient")
    )
    assert forward != gradient
    widths = {
        key: float(page.get_attribute(f'[data-edge="{key}"] .gradient .shaft', "stroke-width"))
        for key in ("x xhat", "x mu", "x var", "mu var")
    }
    share = {key: float(page.get_attribute(f'[data-edge="{key}"]', "data-share")) for key in widths}
    assert sorted(widths, key=lambda k: widths[k]) == sorted(widths, key=lambda k: share[k])


def test_the_zero_path_can_be_hidden(show: Open) -> None:
    page = show(**batch())
    page.click('[data-switch="zero"]')
    opacity = page.eval_on_selector('[data-edge="mu var"] .gradient', "e => getComputedStyle(e).opacity")
    assert float(opacity) == 0


def test_shares_under_the_graph_are_those_of_the_paths(show: Open) -> None:
    b = batch()
    page = show(**b)
    columns = layer_numbers(**b).columns
    for kind, name in (("kept", "kept"), ("mean", "by_mean"), ("variance", "by_variance")):
        share = float(page.get_attribute(f'[data-share-of="{kind}"]', "data-value"))
        assert share == pytest.approx(columns[name][0], rel=1e-6)


# ---------------------------------------------------------------------------------------------------- play


@pytest.mark.parametrize(
    ("control", "value", "setting"),
    [
        ("gamma", -1.75, "gamma"),
        ("beta", 0.5, "beta"),
        ("eps", 0, "eps"),
        ("c1", None, "correction"),
        ("n", 13, None),
    ],
)
def test_each_setting_moves_everything(show: Open, control: str, value: Any, setting: str | None) -> None:
    b = batch()
    page = show(**b)
    expected = {"gamma": b["gamma"][0], "beta": b["beta"][0]}
    if control == "c1":
        page.check('input[name="correction"][value="1"]')
        expected["correction"] = 1
    else:
        page.locator(f'[data-control="{control}"] input').fill(str(value))
        if setting:
            expected[setting] = 1.0 if setting == "eps" else value
    assert len(playing(page)[0]) == (13 if control == "n" else 8)
    check_play(page, 0, **expected)


def test_typed_values_move_one_input_and_one_gradient(show: Open) -> None:
    b = batch()
    page = show(**b)
    x, dy = playing(page)
    page.locator(".handle.x").nth(2).focus()
    page.fill('[data-control="x"] input', "7.5")
    page.fill('[data-control="dy"] input', "-0.03")
    x[2], dy[2] = 7.5, -0.03
    for moved, expected in zip(playing(page), (x, dy), strict=True):
        np.testing.assert_array_equal(moved, expected)
    check_play(page, 2, b["gamma"][0], b["beta"][0])


@pytest.mark.parametrize("kind", ["x", "dy"])
def test_dragging_moves_one_value_and_all_follows(show: Open, kind: str) -> None:
    b = batch()
    page = show(**b)
    before = dict(zip(("x", "dy"), playing(page), strict=True))
    handle = page.locator(f".handle.{kind}").nth(1)
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 30, middle[1], steps=4)
    page.mouse.up()
    after = dict(zip(("x", "dy"), playing(page), strict=True))
    changed = after[kind] - before[kind]
    assert changed[1] > 0 and np.all(np.delete(changed, 1) == 0)
    other = {"x": "dy", "dy": "x"}[kind]
    np.testing.assert_array_equal(after[other], before[other])
    check_play(page, 1, b["gamma"][0], b["beta"][0])


def test_start_again_and_another_channel_leave_play(show: Open) -> None:
    page = show(**batch())
    start = playing(page)
    page.locator(".handle.x").first.press("ArrowRight")
    page.click("#reset")
    np.testing.assert_array_equal(playing(page)[0], start[0])
    page.click("#next")
    assert "The whole channel" in page.locator("#source").inner_text()
    assert page.locator("#channel").input_value() == "1"


def test_without_a_gradient_play_has_its_own(show: Open) -> None:
    b = batch()
    page = show(x=b["x"], gamma=b["gamma"])
    assert "No gradient was given" in page.locator("#reaches").inner_text()
    assert not page.locator('[data-edge="x xhat"] .gradient').is_visible()
    assert page.locator('th[data-key="dx"]').count() == 0
    page.click("#play")
    assert page.locator('[data-edge="x xhat"] .gradient').is_visible()
    assert playing(page)[1].ravel().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    check_play(page, 0, b["gamma"][0], 0)


# ---------------------------------------------------------------------------------- table, findings, layers


def test_the_table_sorts_by_any_column(show: Open) -> None:
    b = batch(40)
    page = show(**b)
    columns = layer_numbers(**b).columns
    for key in ("var", "kept", "cancellation"):
        for way, order in (
            ("descending", np.argsort(-columns[key])),
            ("ascending", np.argsort(columns[key])),
        ):
            page.click(f'th[data-key="{key}"] button')
            assert page.get_attribute(f'th[data-key="{key}"]', "aria-sort") == way
            rows = page.eval_on_selector_all("tr[data-row]", "all => all.map(e => Number(e.dataset.row))")
            assert rows[:10] == order[:10].tolist()
    page.locator("tr[data-row]").nth(4).click()
    assert page.locator("#channel").input_value() == str(order[4])


def test_findings_lead_to_their_channel(show: Open) -> None:
    page = show(**strange())
    page.click("#more")
    kinds = page.locator("#findings b").all_inner_texts()
    assert {"not finite", "constant", "dominated by ε", "huge offset", "γ is 0", "gradient removed"} == set(
        kinds
    )
    page.click('.finding:has-text("constant")')
    assert page.locator("#channel").input_value() == "1"
    assert page.locator("#graph-channel").inner_text() == "channel 1"


def test_strange_channels_draw_without_an_error(show: Open) -> None:
    page = show(**strange())
    for channel in range(10):
        page.select_option("#channel", str(channel))
        page.click("#play")
        page.locator(".handle.x").first.press("ArrowRight")
    assert page.locator("[d*=NaN], [x*=NaN], [cx*=NaN], [width*=NaN], [stroke-width*=NaN]").count() == 0


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (40, 1)])
def test_the_smallest_batches_draw_without_an_error(show: Open, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    page = show(x=x, dy=2 * x)
    page.click("#play")
    check_play(page, 0, 1, 0)


def test_a_models_layers_can_be_chosen(show: Open) -> None:
    first, second = batch(4, seed=1), batch(7, seed=2)
    layers = [layer_numbers(**first, name="block.0.bn"), layer_numbers(**second, name="block.1.bn")]
    page = show(layers=layers)
    assert page.locator("#layer-list .name").all_inner_texts() == ["block.0.bn", "block.1.bn"]
    page.click('[data-layer="1"]')
    assert page.locator("#channel option").count() == 7
    mu = second["x"].astype(np.float64).mean(axis=(0, 2))
    assert shown(page, "mu", "forward") == pytest.approx(mu[0], rel=1e-12)
    assert page.get_attribute('[data-layer="1"]', "aria-pressed") == "true"
    direct = layers[1].columns["direct"] ** 2
    share = page.locator('[data-layer="1"] .shares i').first.evaluate("e => parseFloat(e.style.width)")
    assert share == pytest.approx(100 * (layers[1].columns["kept"] * direct).sum() / direct.sum(), abs=1e-3)


# ------------------------------------------------------------------------------- keyboard, light, phone, many


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


@pytest.mark.parametrize("kind", ["x", "dy"])
def test_arrow_keys_move_a_value_and_keep_the_focus(show: Open, kind: str) -> None:
    b = batch()
    page = show(**b)
    handle = page.locator(f".handle.{kind}").nth(3)
    handle.focus()
    before = float(handle.get_attribute("aria-valuenow"))
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert float(handle.get_attribute("aria-valuenow")) > before
    assert handle.evaluate("e => e === document.activeElement")
    check_play(page, 3, b["gamma"][0], b["beta"][0])


# Contrast by WCAG 2: the luminances of a text and of what is behind it.
CONTRAST = """selectors => selectors.map(selector => {
  const element = document.querySelector(selector);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const style = getComputedStyle(element);
  const front = parse(element instanceof SVGElement ? style.fill : style.color);
  let behind = element;
  while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] === 0)) behind = behind.parentElement;
  const [a, b] = [light(front), light(parse(getComputedStyle(behind).backgroundColor))].sort((p, q) => q - p);
  return [selector, (a + 0.05) / (b + 0.05)];
})"""
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


# What sticks out of its node, and texts drawn smaller than 9 pixels.
STICKING_OUT = """() => [...document.querySelectorAll('.node')].flatMap(node => {
  const box = node.querySelector('rect').getBoundingClientRect();
  return [...node.querySelectorAll('text')].filter(text => text.textContent).filter(text => {
    const inner = text.getBoundingClientRect();
    return inner.right > box.right + 1 || inner.left < box.left - 1 || inner.bottom > box.bottom + 1;
  }).map(text => node.dataset.node + ': ' + text.textContent);
})"""
SMALL = """() => [...document.querySelectorAll('#graph text')].filter(text =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a < 9).map(text => text.textContent)"""


@pytest.mark.parametrize("width", [390, 700, 900, 1240])
def test_every_width_shows_the_graph_whole_and_needs_no_scrolling_sideways(show: Open, width: int) -> None:
    page = show(**batch(20), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(STICKING_OUT) == []
    if width in (390, 1240):
        assert page.evaluate(SMALL) == []
    page.click("#play")
    page.locator(".handle.x").first.press("ArrowRight")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_2048_channels_stay_light(show: Open) -> None:
    """What a page costs is what stands in it: only the rows in sight exist, and a choice redraws no others."""
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


def test_names_in_the_data_cannot_inject_markup(show: Open) -> None:
    layers = [layer_numbers(**batch(seed=i), name=HOSTILE + str(i)) for i in range(2)]
    page = show(layers=layers, title=HOSTILE)
    page.click('[data-layer="1"]')
    assert page.locator("#title").text_content() == HOSTILE
    assert page.locator("#layer-list .name").first.text_content() == HOSTILE + "0"
    assert page.locator("img, [onerror]").count() == 0
    assert page.title() != "taken"
