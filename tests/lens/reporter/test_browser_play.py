"""Play mode in Chromium: the effects of drags, keys and sliders, compared with the graph in NumPy."""

from typing import Any

import numpy as np
import pytest
from lens.reporter import browsing
from lens.reporter.browsing import Open, check_play, playing
from lens.reporter.page_data import batch

pytestmark = pytest.mark.browser
running, visit, show = browsing.running, browsing.visit, browsing.show  # the fixtures


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
def test_each_setting_updates_all_numbers(show: Open, control: str, value: Any, setting: str | None) -> None:
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
def test_dragging_moves_one_value_and_updates_all_numbers(show: Open, kind: str) -> None:
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


def test_without_dy_play_mode_has_a_gradient_of_its_own(show: Open) -> None:
    b = batch()
    page = show(x=b["x"], gamma=b["gamma"])
    assert "No gradient was given" in page.locator("#reaches").inner_text()
    assert not page.locator('[data-edge="x xhat"] .gradient').is_visible()
    assert page.locator('th[data-key="dx"]').count() == 0
    page.click("#play")
    assert page.locator('[data-edge="x xhat"] .gradient').is_visible()
    assert playing(page)[1].ravel().tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    check_play(page, 0, b["gamma"][0], 0)


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (40, 1)])
def test_the_smallest_batches_draw_without_an_error(show: Open, shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    page = show(x=x, dy=2 * x)
    page.click("#play")
    check_play(page, 0, 1, 0)


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
