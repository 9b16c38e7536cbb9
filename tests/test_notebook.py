"""What a notebook shows of results: whole pages, each in a frame that leaves the notebook's own page alone."""

import html
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.reporter import browsing

from xhat.errors import ArgumentError
from xhat.lens import check, report
from xhat.lens.checker.page.render import render
from xhat.notebook import WrittenPage, framed

visit, running = browsing.visit, browsing.running  # the fixtures


def forward(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    xhat = (x - x.mean(0)) / np.sqrt(x.var(0) + eps)
    return gamma * xhat + beta, (xhat, gamma, x.var(0), eps)


def backward(dy: Any, cache: Any) -> Any:
    """Without the path through mu."""
    xhat, gamma, var, eps = cache
    dgamma = (dy * xhat).sum(0)
    return gamma / np.sqrt(var + eps) * (dy - xhat * dgamma / len(dy)), dgamma, dy.sum(0)


class Frames(HTMLParser):
    """The attributes of every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page_in(frame: str) -> str:
    """The page in a frame. It must be the only element, without access to the page around it."""
    ((tag, attributes),) = Frames(frame).found
    assert tag == "iframe" and attributes["sandbox"] == "allow-scripts"
    return str(attributes["srcdoc"])


def test_a_frame_holds_the_page_whatever_is_in_it() -> None:
    text = "<!doctype html><p title='a' class=\"b\">&amp; & </iframe><script>1 < 2</script>"
    assert page_in(framed(text)) == text


def test_a_verdict_shows_its_page() -> None:
    verdict = check(forward, backward)
    assert page_in(verdict._repr_html_() or "") == render([verdict])


def test_a_report_shows_its_page_and_is_a_path(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3))
    where = report(x, x**2, path=tmp_path / "layer.html")
    assert isinstance(where, Path) and where == tmp_path / "layer.html"
    assert page_in(where._repr_html_()) == where.read_text(encoding="utf-8")
    assert type(where.resolve()) is WrittenPage
    where.write_bytes(b"\xff\xfe")
    assert where._repr_html_() is None
    where.unlink()
    assert where._repr_html_() is None


def test_a_diagnosis_shows_its_page() -> None:
    torch = pytest.importorskip("torch")
    import xhat.torch as xt

    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    diagnosis = xt.diagnose(torch.nn.BatchNorm1d(3), [x, x + 1], progress=False)
    assert page_in(diagnosis._repr_html_() or "") == diagnosis.to_html()


def test_without_jinja2_the_text_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = check(forward, backward)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert verdict._repr_html_() is None


def test_without_jinja2_a_diagnosis_shows_its_text_and_its_page_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch")
    import xhat.torch as xt

    diagnosis = xt.diagnose(torch.nn.BatchNorm1d(3), [torch.eye(6, 3)], progress=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert diagnosis._repr_html_() is None
    with pytest.raises(ArgumentError) as raised:
        diagnosis.to_html()
    assert str(raised.value) == (
        "diagnose: jinja2 is missing, install it with pip install 'xhat[doctor]', or omit the page."
    )


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_in_a_browser_the_frames_run_and_the_page_around_them_keeps_its_styles(
    visit: Any, tmp_path: Path, dark: bool
) -> None:
    x = np.random.default_rng(1).standard_normal((7, 3))
    pages = {"verdict": check(forward, backward), "report": report(x, x**2, path=tmp_path / "layer.html")}
    frames = "".join(f'<div id="{name}">{p._repr_html_()}</div>' for name, p in pages.items())
    scheme = "dark" if dark else "light"
    around = "<!doctype html><title>a notebook</title><style>h1 { color: rgb(1, 2, 3) }</style>"
    file = tmp_path / "notebook.html"
    file.write_text(f"{around}<h1 id='theme'>{html.escape('<h1>')}</h1>{frames}", encoding="utf-8")
    page = visit(file, dark=dark)
    inside = {name: page.frame_locator(f"#{name} iframe") for name in pages}
    assert "mean path dropped" in inside["verdict"].locator(".headline").inner_text()
    assert inside["report"].locator("svg").count() > 3  # drawn by its scripts
    for name in pages:
        inside[name].locator(f"html[data-theme={scheme}]").wait_for(state="attached")
        box = page.locator(f"#{name} iframe").bounding_box()
        assert box["height"] > 500 and box["width"] > 1100
    inside["report"].locator("#theme").click()
    assert inside["report"].locator("html").get_attribute("data-theme") == ("light" if dark else "dark")
    assert page.eval_on_selector("h1", "e => getComputedStyle(e).color") == "rgb(1, 2, 3)"
    assert page.eval_on_selector("h1", "e => getComputedStyle(e).fontSize") == "32px"
