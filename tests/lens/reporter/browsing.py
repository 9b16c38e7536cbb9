"""Opens a report in Chromium and reads the displayed numbers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.reporter import chromium

from xhat.lens import graph, report
from xhat.lens.reporter.page import page as page_of

Open = Callable[..., Any]

# Contrast by WCAG 2: the luminances of a text and of its background.
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


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with chromium.browser() as found:
        yield found


@pytest.fixture
def visit(running: Any) -> Iterator[Open]:
    """Open an HTML file; any console message or network request fails the test."""
    troubles: list[str] = []
    contexts = []

    def visited(file: Path, width: int = 1240, dark: bool = False, **options: Any) -> Any:
        scheme = "dark" if dark else "light"
        context = running.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("request", lambda request: request.url == file.as_uri() or troubles.append(request.url))
        page.goto(file.as_uri())
        return page

    yield visited
    for context in contexts:
        context.close()
    assert troubles == []


@pytest.fixture
def show(visit: Open, tmp_path: Path) -> Open:
    """Open a page about these arrays or layers."""

    def opened(
        layers: Any = None, width: int = 1240, dark: bool = False, title: str = "t", **arrays: Any
    ) -> Any:
        file = tmp_path / "page.html"
        if layers is None:
            report(**arrays, title=title, path=file)
        else:
            file.write_text(page_of(layers, title), encoding="utf-8")
        return visit(file, width, dark)

    return opened


def shown(page: Any, node: str, kind: str) -> float:
    """A number at a node of the graph."""
    return float(page.locator(f'[data-node="{node}"] .{kind}').get_attribute("data-value"))


def formula(page: Any, name: str) -> float:
    """A result in the formulas of play mode."""
    return float(page.locator(f'[data-formula="{name}"]').get_attribute("data-value"))


def playing(page: Any) -> tuple[Any, Any]:
    """x and dy of the batch in play mode."""
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
    """Compare all numbers of play mode with the traversal of the graph in NumPy."""
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
