"""The report in headless Chromium: graph, table, findings and layers, compared with NumPy."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from lens.reporter import browsing
from lens.reporter.browsing import Open, shown
from lens.reporter.page_data import HOSTILE, batch, strange

from xhat.lens import graph
from xhat.lens.reporter.data import layer_numbers
from xhat.lens.reporter.page import page as page_of

pytestmark = pytest.mark.browser
running, visit, show = browsing.running, browsing.visit, browsing.show  # the fixtures

PATHS = ("direct", "mean", "variance")


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


def test_the_path_switches_select_the_paths_that_are_summed(show: Open) -> None:
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


def test_a_finding_selects_its_channel(show: Open) -> None:
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


def test_names_in_the_data_cannot_inject_markup(show: Open) -> None:
    layers = [layer_numbers(**batch(seed=i), name=HOSTILE + str(i)) for i in range(2)]
    page = show(layers=layers, title=HOSTILE)
    page.click('[data-layer="1"]')
    assert page.locator("#title").text_content() == HOSTILE
    assert page.locator("#layer-list .name").first.text_content() == HOSTILE + "0"
    assert page.locator("img, [onerror]").count() == 0
    assert page.title() != "taken"


def test_a_page_about_a_model_leads_to_the_doctor(show: Open, visit: Open, tmp_path: Path) -> None:
    assert show(**batch()).locator("#doctor").is_hidden()
    file, layers = tmp_path / "model.html", [layer_numbers(**batch())]
    file.write_text(page_of(layers, "net", model=True), encoding="utf-8")
    line = visit(file).locator("#doctor")
    assert "xhat.torch.diagnose(model, batches)" in line.inner_text()
    file.write_text(page_of(layers, "net", model=True, doctor="./d.html"), encoding="utf-8")
    page = visit(file)
    assert page.locator("#doctor a").get_attribute("href") == "./d.html"
    assert page.evaluate("document.querySelector('#doctor a').href") == (tmp_path / "d.html").as_uri()
