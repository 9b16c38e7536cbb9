"""The report without a browser: numbers, findings, page, errors, and the command."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from lens.reporter.page_data import HOSTILE, batch, data_of, strange, unpacked

import xhat
import xhat.lens
from xhat.cli import main
from xhat.errors import ArgumentError, DegenerateBatchError, DtypeError, ShapeError
from xhat.lens.paths.summary import path_summary
from xhat.lens.reporter.data import BINS, layer_numbers
from xhat.lens.reporter.findings import findings
from xhat.lens.reporter.page import page

# ------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("correction", [0, 1])
def test_columns_agree_with_the_oracle_and_with_the_engine(correction: int) -> None:
    b = batch()
    b["gamma"][2] *= -1
    columns = layer_numbers(**b, correction=correction, eps=1e-3).columns
    wide = {k: v.astype(np.float64) for k, v in b.items()}
    same = {"eps": 1e-3, "correction": correction}
    f = oracle.forward(wide["x"], wide["gamma"], wide["beta"], **same)
    g = oracle.backward(wide["dy"], wide["x"], wide["gamma"], wide["beta"], **same)
    expected = {"mu": f.mean, "var": f.var, "rstd": f.rstd, "dgamma": g.dgamma, "dbeta": g.dbeta}
    expected |= {"dx": np.sqrt((g.dx**2).sum(axis=(0, 2))), "dx_max": g.dx.max(axis=(0, 2))}
    expected |= {"min": wide["x"].min(axis=(0, 2)), "eps_share": 1e-3 / (f.var + 1e-3)}
    for name, column in expected.items():
        np.testing.assert_allclose(columns[name], column.astype(float), rtol=1e-10, err_msg=name)
    _, context = xhat.batch_norm(wide["x"], wide["gamma"], **same)
    for name, column in path_summary(wide["dy"], context)._asdict().items():
        np.testing.assert_allclose(columns[name], column, rtol=1e-9, atol=1e-15, err_msg=name)


def test_blocks_of_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = layer_numbers(**batch(7))
    monkeypatch.setattr("xhat.lens.reporter.data._BLOCK", 60)  # one channel at a time
    for name, column in layer_numbers(**batch(7)).columns.items():
        np.testing.assert_array_equal(column, whole.columns[name], err_msg=name)


def test_histograms_count_as_numpy_does() -> None:
    b = batch(samples=40)
    counts = layer_numbers(**b).histograms
    for c in range(6):
        for name in ("x", "dy"):
            values = b[name][:, c].ravel().astype(np.float64)
            expected, _ = np.histogram(values, bins=BINS)
            assert (
                np.abs(counts[name][c] - expected).sum() <= 4
            )  # a value on a bin edge may round to either side
            assert counts[name][c].sum() == values.size


def test_any_axes_are_the_channels() -> None:
    b = batch(12)
    x, dy = (b[k].transpose(0, 2, 1).reshape(10, 5, 3, 4) for k in ("x", "dy"))
    gamma, beta = b["gamma"].reshape(3, 4), b["beta"].reshape(3, 4)
    found, expected = layer_numbers(x, dy, gamma, beta, axis=(-2, -1)), layer_numbers(**b)
    for name, column in expected.columns.items():
        np.testing.assert_allclose(found.columns[name], column, rtol=1e-12, atol=1e-18, err_msg=name)


def test_given_moments_are_used_and_have_no_paths() -> None:
    b = batch()
    columns = layer_numbers(**b, mean=np.ones(6), var=np.full(6, 4.0)).columns
    expected = np.sqrt(
        ((b["gamma"][:, None] * b["dy"].astype(float) / np.sqrt(4 + 1e-5)) ** 2).sum(axis=(0, 2))
    )
    np.testing.assert_allclose(columns["dx"], expected, rtol=1e-12)
    np.testing.assert_array_equal(columns["kept"], 1)


# ------------------------------------------------------------------------------------------------ findings


def test_each_strange_channel_is_found_with_its_reason_and_no_other() -> None:
    found = findings(layer_numbers(**strange()))
    assert [(f.kind, f.channel) for f in found] == [
        ("not finite", 4), ("constant", 1), ("dominated by ε", 2), ("huge offset", 2), ("huge offset", 3),
        ("γ is 0", 5), ("gradient removed", 6),
    ]  # fmt: skip
    reasons = {(f.kind, f.channel): f.reason for f in found}
    assert reasons["constant", 1].startswith("all 100 values are 0.25, so x̂ is 0 and y is β everywhere")
    assert "is no larger than ε = 1e−5" in reasons["dominated by ε", 2]
    assert "of the gradient's energy is removed" in reasons["gradient removed", 6]
    assert all(re.fullmatch(r"[^.]+(\.\d+[^.]*)*\.", f.reason) for f in found)


def test_overflowing_squares_are_distinguished_from_nan() -> None:
    x = batch()["x"].astype(np.float64)
    x[:, 2] *= 1e200
    (found,) = findings(layer_numbers(x))
    assert (found.kind, found.channel) == ("not finite", 2)
    assert found.reason.endswith(": their squares overflow, even in float64.")


def test_few_values_are_one_finding_for_the_layer() -> None:
    (found,) = findings(layer_numbers(**batch(6, 12, 1)))
    assert (found.kind, found.channel) == ("few values", None)
    assert (
        found.reason
        == "every channel has 12 values to estimate from: the variance is uncertain by about 43%."
    )


def test_an_ordinary_layer_has_no_findings() -> None:
    assert findings(layer_numbers(**batch(50))) == []


@pytest.mark.parametrize("what", ["x", "dy"])
def test_infinite_values_stay_in_their_channel(what: str) -> None:
    b = batch()
    clean = layer_numbers(**b)
    b[what][3, 2, 1] = np.inf
    dirty = layer_numbers(**b)
    others = [0, 1, 3, 4, 5]
    for name, column in clean.columns.items():
        np.testing.assert_array_equal(dirty.columns[name][others], column[others])
    assert len(page([dirty], "t")) > 0


# ---------------------------------------------------------------------------------------------------- page


def test_the_page_holds_the_numbers_exactly(tmp_path: Path) -> None:
    b = batch()
    text = xhat.lens.report(**b, path=tmp_path / "r.html", title="t").read_text(encoding="utf-8")
    (layer,) = data_of(text)["layers"]
    columns = layer_numbers(**b).columns
    np.testing.assert_array_equal(unpacked(layer["columns"]["mu"]), columns["mu"])
    np.testing.assert_array_equal(unpacked(layer["columns"]["dx"]), columns["dx"].astype(np.float32))
    np.testing.assert_array_equal(unpacked(layer["sample"]["x"])[:, 0], b["x"][0, :, 0])
    np.testing.assert_array_equal(unpacked(layer["sample"]["x"])[:, -1], b["x"][-1, :, -1])


def test_names_in_the_data_are_not_markup() -> None:
    text = page([layer_numbers(**batch(), name=HOSTILE), layer_numbers(**batch(), name="b")], HOSTILE)
    data = data_of(text)
    assert data["title"] == HOSTILE and data["layers"][0]["name"] == HOSTILE
    assert "<img" not in text and text.count("</script>") == 2


def test_the_page_contains_no_url_but_the_namespace_of_svg() -> None:
    text = page([layer_numbers(**batch())], "t")
    for data in re.findall(r'id="data">(.*?)</script>', text):
        text = text.replace(data, "")
    assert set(re.findall(r"""[a-z]+://[^\s"'`]*""", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|src=|fetch\(|XMLHttpRequest|innerHTML", text)
    assert "default-src 'none'" in text


def test_an_ordinary_page_is_small_and_2048_channels_stay_below_a_megabyte() -> None:
    assert len(page([layer_numbers(**batch(64))], "t").encode()) < 150_000
    assert len(page([layer_numbers(**batch(2048))], "t").encode()) < 1_000_000


def test_too_many_channels_are_thinned_and_the_strange_ones_kept() -> None:
    b = batch(5000, 4, 5)
    b["x"][:, 4321] = 7
    (layer,) = data_of(page([layer_numbers(**b)], "t"))["layers"]
    assert layer["count"] == 5000 and len(layer["channels"]) <= 2048
    assert 4321 in layer["channels"] and {0, 4999} <= set(layer["channels"])
    (constant,) = layer["findings"]
    assert layer["channels"][constant["row"]] == 4321


def test_many_findings_of_one_kind_don_t_hide_others() -> None:
    b = batch(300, 8, 5)
    b["x"][:, :299] = 1
    b["x"][:, 299] += 1000
    (layer,) = data_of(page([layer_numbers(**b)], "t"))["layers"]
    assert [f["kind"] for f in layer["findings"][:3]] == ["constant", "huge offset", "constant"]
    assert len(layer["findings"]) == 100 and layer["findingsInAll"] == 300


def test_a_page_is_deterministic() -> None:
    assert page([layer_numbers(**batch())], "t") == page([layer_numbers(**batch())], "t")


# --------------------------------------------------------------------------------------------- wrong input


X = np.ones((4, 3), np.float32)
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "dy": ({"dy": X.T}, ShapeError, "report: dy has shape (3, 4), expected (4, 3), the shape of x."),
    "gamma": (
        {"gamma": np.ones(4)}, ShapeError, "report: gamma has shape (4,), expected (3,) to match the channels of x.",
    ),
    "beta": (
        {"beta": np.ones((3, 1))}, ShapeError,
        "report: beta has shape (3, 1), expected (3,) to match the channels of x.",
    ),
    "axis": ({"axis": 2}, ShapeError, "report: axis 2 does not exist in x of 2 dimensions, expected -2 to 1."),
    "complex": ({"x": X * 1j}, DtypeError, "report: x has dtype complex64, expected real numbers."),
    "text": ({"x": np.array([["a"]])}, DtypeError, "report: x has dtype <U1, expected real numbers."),
    "eps": ({"eps": -1}, ArgumentError, "report: eps is -1, expected a positive number such as 1e-5."),
    "correction": (
        {"correction": -1}, ArgumentError, "report: correction is -1, expected 0 (divide by m) or 1 (by m - 1).",
    ),
    "one value": (
        {"x": X[:1], "correction": 1}, DegenerateBatchError,
        "report: each channel has 1 value and correction is 1, expected more values than the correction; check axis, "
        "or use correction 0.",
    ),
    "empty": (
        {"x": X[:0]}, DegenerateBatchError, "report: x has 3 channels of 0 values, expected at least one of each.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_gets_one_sentence(wrong: str, tmp_path: Path) -> None:
    arguments, kind, sentence = WRONG[wrong]
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        xhat.lens.report(**({"x": X} | arguments), path=tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- command


def saved(folder: Path, **arrays: Any) -> list[str]:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [str(folder / f"{name}.npy") for name in arrays]


def test_the_command_writes_what_the_function_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x, dy, gamma, beta = saved(tmp_path, **batch())
    out = tmp_path / "page.html"
    arguments = [
        "report",
        x,
        "--dy",
        dy,
        "--gamma",
        gamma,
        "--beta",
        beta,
        "--eps",
        "1e-3",
        "--correction",
        "1",
    ]
    assert main([*arguments, "--axis", "1", "-o", str(out)]) == 0
    assert capsys.readouterr().out == f"The report is in {out.resolve()}\n"
    direct = xhat.lens.report(**batch(), eps=1e-3, correction=1, title="x.npy", path=tmp_path / "other.html")
    assert out.read_text() == direct.read_text()


def test_the_command_takes_several_axes(tmp_path: Path) -> None:
    (x,) = saved(tmp_path, x=np.random.default_rng(0).normal(size=(9, 2, 3)))
    assert main(["report", x, "--axis", "1,2", "-o", str(tmp_path / "r.html")]) == 0
    assert data_of((tmp_path / "r.html").read_text())["layers"][0]["count"] == 6


def test_files_that_hold_no_array_get_a_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (x,) = saved(tmp_path, x=X)
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "cut.npy").write_bytes(Path(x).read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "object.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=X, b=X)
    tail = ", expected one array in a file written by numpy.save.\n"
    for name, reason in {
        "none.npy": "can't be read (No such file or directory)",
        "text.npy": "holds no array of numbers",
        "cut.npy": "holds no array of numbers",
        "empty.npy": "holds no array of numbers",
        "object.npy": "holds no array of numbers",
        "two.npz": "is an archive (of a, b)",
    }.items():
        file = tmp_path / name
        assert main(["report", str(file), "-o", str(tmp_path / "r.html")]) == 2
        assert capsys.readouterr().err == f"xhat report: {file} {reason}{tail}"
    assert main(["report", x, "-o", str(tmp_path / "no" / "r.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


def test_wrong_options_are_refused_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (x,) = saved(tmp_path, x=X)
    assert main(["report", x, "--axis", "5", "-o", str(tmp_path / "r.html")]) == 2
    assert "axis 5 does not exist" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["report", x, "--axis", "one"])
    assert stop.value.code == 2 and "'one' is no axis" in capsys.readouterr().err
