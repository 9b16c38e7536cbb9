"""The page of a verdict: its numbers without a browser, and its look in headless Chromium."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.checker.kernels import kernel, pairwise, two_passes
from lens.reporter import browsing

from xhat import cli
from xhat.lens import check, check_data
from xhat.lens.checker.page.render import render
from xhat.lens.checker.verdict import FormulaRead, Verdict, WrongLine

running, visit = browsing.running, browsing.visit  # the fixtures
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"
M, C = 100, 33


def dump(mean_path: bool) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, C, M)).astype(np.float32) + np.float32(0.5)
    case = {"x": x, "dy": dy, "gamma": rng.uniform(0.5, 2, C), "beta": rng.uniform(-1, 1, C), "eps": 1e-5}
    results = kernel(case, two_passes(pairwise), pairwise, mean_path=mean_path)
    return case | results | {"layout": "CN"}


def view_of(verdict: Verdict, output: str) -> dict[str, Any]:
    (found,) = (v for v in verdict.comparisons[0]["views"] if v["output"] == output)
    return dict(found)


def test_the_largest_differences_are_those_of_numpy() -> None:
    given = dump(mean_path=False)
    view = view_of(check_data(given), "dx")
    x, dy = (np.asarray(given[name], np.float64) for name in ("x", "dy"))
    rstd = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    scale = given["gamma"][:, None] * rstd
    xhat = (x - x.mean(axis=1, keepdims=True)) * rstd
    exact = scale * (dy - dy.mean(axis=1, keepdims=True) - xhat * (dy * xhat).mean(axis=1, keepdims=True))
    for one in view["largest"]:
        place = tuple(one["place"])
        assert one["exact"] == pytest.approx(exact[place], rel=1e-9)
        assert one["yours"] == pytest.approx(float(given["dx"][place]), rel=1e-9)
        assert one["off"] == pytest.approx(one["yours"] - one["exact"])
    _, shown, difference = view["maps"]
    assert [m["title"] for m in view["maps"]] == ["yours", "exact", "difference"]
    assert (shown["columns"], shown["rows"]) == (64, 24)  # places that share a column; the 24 worst channels
    assert difference["scale"] == pytest.approx(np.abs(given["dx"] - exact).max(), rel=1e-6)


def test_a_single_wrong_value_is_seen_among_those_that_share_its_column() -> None:
    given = dump(mean_path=True)
    given["dx"][7, 57] += 3
    view = view_of(check_data(given), "dx")
    assert view["largest"][0]["place"] == (7, 57)
    assert view["maps"][2]["scale"] == pytest.approx(3, rel=1e-5)
    assert sum(cells.count("M") for cells in view["maps"][2]["levels"].values()) == 1


def test_dx_is_shown_along_its_three_paths() -> None:
    verdict = check_data(dump(mean_path=False))
    for output, factor in (("direct path", 1), ("path through mu", 0), ("path through var", 1)):
        view = view_of(verdict, output)
        assert view["factors"] == pytest.approx((factor, factor), abs=1e-4)
        assert (view["ratio"] > 1) == (factor == 0)
        assert view["outside"] < 1e-9


def test_a_right_verdict_has_no_difference_and_json_has_no_arrays() -> None:
    verdict = check_data(dump(mean_path=True))
    assert verdict and all(view["ratio"] <= 1 for view in verdict.comparisons[0]["views"])
    assert "comparisons" not in json.loads(verdict.as_json())
    assert render([verdict]).count("within rounding") == 10  # 7 results and 3 paths


def test_lines_formulas_and_hostile_names_are_text() -> None:
    verdict = Verdict(
        HOSTILE,
        unnamed=(HOSTILE,),
        wrong_lines=(WrongLine("bwd", 7, f"  dx = {HOSTILE}", "dx", "2 dy", "dy"),),
        formulas=(FormulaRead("dx", "2 dy", "dy", ("the factor",)),),
    )
    page = render([verdict])
    assert HOSTILE not in page and "&lt;/script&gt;&lt;img src=x" in page
    assert "The first wrong line: bwd, line 7" in page and "They differ in the factor." in page


def test_the_command_writes_a_page_and_judges_dumps_and_libraries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, page = (tmp_path / name for name in ("good.npz", "bad.npz", "page.html"))
    np.savez(good, **dump(True))
    np.savez(bad, **dump(False))
    assert cli.main(["check", "--data", str(good)]) == 0
    assert cli.main(["check", "--data", str(bad), "-o", str(page), "--json"]) == 1
    assert "mean path dropped" in page.read_text(encoding="utf-8")
    assert cli.main(["check", "--data", str(bad), "-o", str(tmp_path / "none" / "page.html")]) == 2
    assert "choose another --output" in capsys.readouterr().err
    assert cli.main(["check", "--against", "xhat.batch_norm"]) == 0
    for name, words in (
        ("xhat.nothing", "there is no object xhat.nothing"),
        ("nowhere.f", "there is no object"),
    ):
        assert cli.main(["check", "--against", name]) == 2
        assert words in capsys.readouterr().err
    probes = tmp_path / "probes"
    assert cli.main(["check", "--probes", str(probes), "--layout", "NC"]) == 0
    assert (
        "6 cases for layout NC in float32" in capsys.readouterr().out
        and probes.with_name("probes.npz").exists()
    )
    assert cli.main(["check"]) == 2


@pytest.mark.parametrize("name", ["torch.nn.BatchNorm2d", "xhat.torch.BatchNorm2d"])
def test_a_library_layer_is_checked_by_its_name(name: str) -> None:
    pytest.importorskip("torch")
    assert cli.main(["check", "--against", name, "--json"]) == 0


def test_code_that_fails_on_long_channels_is_shown_there() -> None:
    def short(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        y = gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + eps) + beta
        y[2048:] = np.nan
        return y

    verdict = check(short, layout="NC")
    assert [c["title"] for c in verdict.comparisons] == ["NC", "4097 values a channel"]
    assert verdict.comparisons[1]["views"][0]["ratio"] == np.inf


@pytest.mark.browser
def test_the_page_fits_a_phone_and_is_legible_in_both_schemes(
    visit: Callable[..., Any], tmp_path: Path
) -> None:
    file = check_data(dump(mean_path=False)).to_html(tmp_path / "page.html")
    for width, dark in ((390, False), (1280, True)):
        page = visit(file, width, dark)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == "the dump: xhat check"
        assert page.locator("[data-output=dx] .map path").count() > 3
        shown = [".headline", ".badge.wrong", ".badge.right", "td.wrong", ".say", "figcaption"]
        for selector, contrast in page.evaluate(browsing.CONTRAST, shown):
            assert contrast >= 4.5, (selector, width, dark)
        colours = page.evaluate(
            "['p4', 'n4'].map(c => getComputedStyle(document.querySelector('.map .' + c)).fill)"
        )
        assert len(set(colours)) == 2
