"""What stands out in a whole model: findings grouped over layers, the first place that is not finite, the curves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.reporter.page_data import batch, data_of

from xhat.errors import ArgumentError
from xhat.lens import report
from xhat.lens.reporter.data import Layer, layer_numbers
from xhat.lens.reporter.findings import findings
from xhat.lens.reporter.groups import first_not_finite, groups, is_broken, layer_facts
from xhat.lens.reporter.page import page


def layer(name: str, **changes: Any) -> Layer:
    return layer_numbers(**(batch() | changes), name=name)


def grouped(layers: list[Layer]) -> list[Any]:
    return groups(layers, [findings(one) for one in layers])


def test_findings_of_one_kind_are_one_group() -> None:
    zero = np.zeros(6)
    layers = [layer("a.bn1"), *(layer(f"{k}.bn2", gamma=zero) for k in "abc"), layer("b.bn1")]
    (group,) = grouped(layers)
    assert (group.kind, group.where) == ("γ is 0", "3 layers (every bn2), 18 channels")
    assert (group.layer, group.channel) == (1, 0)
    (group,) = grouped([layer(f"n{k}", gamma=zero) for k in range(5)] + [layer("last")])
    assert group.where == "5 layers (n0, n1, n2 and 2 more), 30 channels"
    (group,) = grouped([layer("one", gamma=zero), layer("other")])
    assert group.where == "one, 6 channels"
    assert grouped([layer("fine"), layer("too")]) == []


def test_the_first_place_that_is_not_finite_is_named() -> None:
    x, dy = batch()["x"].copy(), batch()["dy"].copy()
    x[0, 2], dy[0, 1:3] = np.nan, np.inf
    fine, bad = layer("fine"), layer("bad", x=x)
    assert first_not_finite([fine, fine]) is None
    assert first_not_finite([fine, bad, bad]) == {"text": "the input of bad (1 of 6 channels)", "layer": 1}
    assert first_not_finite([bad, layer("other", dy=dy)]) == {
        "text": "the input of bad (1 of 6 channels)",
        "layer": 0,
    }
    # The backward pass begins at the last layer.
    found = first_not_finite([layer("a", dy=dy), layer("b", dy=dy), fine])
    assert found == {"text": "the gradient at the output of b (2 of 6 channels)", "layer": 1}
    gamma = np.where(np.arange(6) == 3, np.nan, 1.0)
    assert first_not_finite([layer("g", gamma=gamma)]) == {"text": "γ of g (1 of 6 channels)", "layer": 0}


def test_a_layer_without_finite_values_has_no_shares() -> None:
    nan = np.full_like(batch()["x"], np.nan)
    (broken, fine) = data_of(page([layer("broken", x=nan), layer("fine")], "t", model=True))["layers"]
    assert broken["broken"] and broken["shares"] is None
    assert not fine["broken"] and sum(fine["shares"]) == pytest.approx(1)
    (silent,) = data_of(page([layer("silent", dy=0 * batch()["dy"])], "t"))["layers"]
    assert silent["shares"] is None and is_broken(layer("broken", x=nan))


def test_squares_that_overflow_float32_are_found() -> None:
    x = batch()["x"].astype(np.float64) * 1e30
    assert "overflows float32" not in {f.kind for f in findings(layer("wide", x=x))}  # float64 holds them
    kinds = [f.kind for f in findings(layer("single", x=x.astype(np.float32)))]
    assert kinds == ["overflows float32"] * 6
    assert findings(layer("near", x=batch()["x"] * np.float32(1e18))) == []
    half = layer("half", x=batch()["x"].astype(np.float16), gamma=np.full(6, 1e5))
    assert [f.kind for f in findings(half)] == ["overflows float16"] * 6


def test_dead_channels_are_found() -> None:
    b = batch()
    b["dy"][:, 2], b["beta"] = 0, np.full(6, -50.0)
    dead = [(f.kind, f.channel) for f in findings(layer("relu", **b))]
    assert dead == [("dead", 2)]
    b["beta"] = np.full(6, 50.0)  # y is positive: another reason
    assert findings(layer("relu", **b)) == []
    assert [f.kind for f in findings(layer("none", dy=0 * b["dy"]))] == ["no gradient"]


def test_the_batch_is_compared_with_the_running_statistics() -> None:
    x = batch()["x"].astype(np.float64)
    mean, var = x.mean(axis=(0, 2)), x.var(axis=(0, 2))
    same = layer("same", running=(mean, var))
    assert findings(same) == []
    facts = layer_facts(same)
    assert facts["gapMean"] == pytest.approx(0, abs=1e-12) and facts["gapVar"] == pytest.approx(1)
    moved = layer("moved", running=(mean + 3 * np.sqrt(var + 1e-5), var))
    np.testing.assert_allclose(moved.columns["gap_mean"], -3, rtol=1e-9)
    assert layer_facts(moved)["gapMean"] == pytest.approx(3)
    assert [f.kind for f in findings(moved)] == ["running statistics differ"] * 6
    fixed = layer("fixed", running=(mean, 9 * var), mean=mean, var=9 * var)  # evaluation compares too
    np.testing.assert_allclose(fixed.columns["gap_var"], (var + 1e-5) / (9 * var + 1e-5), rtol=1e-9)
    assert {f.kind for f in findings(fixed)} == {"running statistics differ"}


def test_the_norms_of_a_layer_are_those_of_all_its_channels() -> None:
    facts = layer_facts(layer("a"))
    assert facts["dy"] == pytest.approx(np.linalg.norm(batch()["dy"].astype(np.float64)))
    nan = batch()["dy"].copy()
    nan[0, 0] = np.nan
    assert layer_facts(layer("a", dy=nan))["dx"] is None


def test_bfloat16_arrays_of_numpy_save_are_read(tmp_path: Path) -> None:
    single = batch()["x"]
    bits = (single.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    cut = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    path = report(bits.view("V2"), path=tmp_path / "r.html")
    (read,) = data_of(path.read_text(encoding="utf-8"))["layers"]
    assert read["dtype"] == "bfloat16"
    np.testing.assert_array_equal(
        layer_numbers(bits.view("V2")).columns["mu"], layer_numbers(cut).columns["mu"]
    )


def test_a_wrong_batch_has_one_sentence(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from xhat.lens import report_model

    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    x, labels = torch.randn(5, 3), torch.arange(5) % 4
    wrong = {
        "a dict of image": {"image": x},
        "with no target, expected batch to be": (x,),
        r"with a Tensor of shape \(5,\), a Tensor of shape \(5,\)": (x, labels, labels),
        r"on a Tensor of shape \(5, 2\), expected": x[:, :2],
    }
    for words, given in wrong.items():
        with pytest.raises(
            ArgumentError, match=rf"^report_model: the (model|loss) raised \w+ \(.*\) .*{words}"
        ):
            report_model(net, given, torch.nn.functional.cross_entropy, path=tmp_path / "r.html")
