"""The benchmark of xhat.torch: nothing wrong is timed, memory is had in both ways, verdicts follow the figures."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import in_a_process
from torch import nn

pytest.importorskip("rich")

import xhat.torch as xt
from benchmarks.harness.cases import Case
from benchmarks.harness.contest import Unverified
from benchmarks.harness.machine import machine
from benchmarks.harness.problem import Variant
from benchmarks.harness.rows import RESULTS_FOLDER, Row, races
from benchmarks.harness.targets import Verdict, judged
from benchmarks.torch import layers, steps
from benchmarks.torch.cases import LAYERS, NETS, VARIANTS, Layer, Net
from benchmarks.torch.nets import build
from benchmarks.torch.tables import tables
from benchmarks.torch.targets import FASTER, STEP, TINY_LIMIT, targets

ROOT = Path(__file__).parents[2]
NONE, RELU, ADD_RELU = VARIANTS
SMALL = {layout: Case("a test", (6, 3, 4, 5), layout) for layout in ("NCHW", "NHWC")}
NET = Net("ResNet-20", 4, 8, "NCHW")


# Layers


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
@pytest.mark.parametrize("layout", SMALL)
def test_a_layer_is_verified_and_timed(layout: str, variant: Variant) -> None:
    found = list(layers.measure(Layer(SMALL[layout], variant), "stock", rounds=1))

    expected = ["torch", "xhat"] if variant is NONE else ["torch", "torch, out of place", "xhat"]
    assert [row.contestant for row in found] == expected
    assert all(0 < row.error < 1e-6 for row in found)
    assert all(0 < row.p20 <= row.median <= row.p80 for row in found)
    assert {(row.memory, row.variant, row.what) for row in found} == {("stock", variant.name, "both")}


@pytest.mark.parametrize("case", [Case("", (7, 5), "NC"), Case("", (7, 5, 3), "NCL")])
def test_layers_of_other_shapes_are_verified(case: Case) -> None:
    assert len(list(layers.measure(Layer(case, NONE), "stock", rounds=1))) == 2


def test_bfloat16_is_verified() -> None:
    case = SMALL["NHWC"]._replace(dtype="bfloat16")
    assert len(list(layers.measure(Layer(case, NONE), "stock", rounds=1))) == 2


@pytest.mark.parametrize("spoil", ["y", "dx"])
def test_a_wrong_layer_is_not_timed(spoil: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = xt.BatchNorm2d.forward

    def wrong(self, x, *rest):
        y = forward(self, x, *rest)
        return y + 1e-3 if spoil == "y" else y + (x - x.detach()) * 1e-3

    monkeypatch.setattr(xt.BatchNorm2d, "forward", wrong)
    with pytest.raises(Unverified, match=f"xhat: {spoil} of the both pass"):
        list(layers.measure(Layer(SMALL["NCHW"], NONE), "stock", rounds=1))


def test_what_autograd_keeps_of_a_layer() -> None:
    kept = {}
    for variant in VARIANTS:
        for row in layers.saved(Layer(SMALL["NCHW"], variant), "stock"):
            kept[variant.name, row.contestant] = row.median * 1e6 / row.nbytes
    few = 8 * 3 * 4 / (4 * 6 * 3 * 4 * 5)  # eight numbers a channel
    assert kept["bn + relu", "xhat"] < few < 1 <= kept["bn + relu", "torch"] < 1 + few
    assert 1 <= kept["bn + add + relu", "xhat"] < 1 + few
    assert kept["bn", "xhat"] < few


# Training steps


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_step_is_verified_and_timed(layout: str) -> None:
    found = list(steps.measure(NET._replace(layout=layout), "reused", rounds=1))

    assert [row.contestant for row in found] == ["torch", "xhat", "identity"]
    assert all(0 < row.error < 1e-3 for row in found[:2])
    assert {(row.case, row.layout, row.what, row.memory) for row in found} == {
        ("4x3x8x8", layout, "step", "reused")
    }


def test_the_three_networks_differ_in_batch_norm_alone() -> None:
    kinds = {}
    for name in steps.CONTESTANTS:
        modules = list(steps._contestant(name, NET).modules())
        kinds[name] = [
            sum(isinstance(m, kind) for m in modules) for kind in (nn.BatchNorm2d, nn.Conv2d, nn.ReLU)
        ]
        ours = sum(isinstance(m, xt.BatchNorm2d) for m in modules)
        assert ours == (kinds[name][0] if name == "xhat" else 0)
    assert kinds == {"torch": [21, 21, 10], "xhat": [21, 21, 10], "identity": [0, 21, 10]}


def test_a_step_that_computes_something_else_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model):
        model[1].eps = 0.3
        return model, []

    monkeypatch.setattr(steps.xt, "convert", wrong)
    with pytest.raises(Unverified, match="xhat: "):
        list(steps.measure(NET, "stock", rounds=1))


def test_a_step_changes_no_weight_but_the_running_statistics() -> None:
    model = build(NET.name)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = steps.step_of("torch", NET, model)
    step()
    step()
    moved = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert moved == {name for name in before if "running" in name or "tracked" in name}


@pytest.mark.parametrize("name", ["ResNet-20", "ResNet-18", "DenseNet-121"])
def test_the_networks_are_those_of_their_papers(name: str) -> None:
    modules = list(build(name).modules())
    count = {kind: sum(isinstance(m, kind) for m in modules) for kind in (nn.Conv2d, nn.BatchNorm2d)}
    # With the convolutions of the shortcuts: 20 and 18 layers and 2 or 3 of these; DenseNet-121 has 120 and one.
    expected = {"ResNet-20": (21, 21), "ResNet-18": (20, 20), "DenseNet-121": (120, 121)}[name]
    assert (count[nn.Conv2d], count[nn.BatchNorm2d]) == expected


PEAK = """
import json
from benchmarks.torch.cases import Net
from benchmarks.torch.steps import peak_of_a_process
print(json.dumps([peak_of_a_process("torch", Net("ResNet-20", n, 32, "NCHW")) for n in (2, 34)]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from Linux's /proc")
def test_the_peak_is_that_of_the_steps() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PEAK}"
    little, much = json.loads(in_a_process(code))
    kept = (
        32 * 21 * 16 * 32 * 32 * 4 / 1e6
    )  # MB, were every one of 32 images' activations as large as the first
    assert 0.3 * kept < much - little < 6 * kept


# Targets and tables


def rows(what: str = "both", **fields: object) -> list[Row]:
    """A race in which torch takes 200 and xhat 100."""
    known = {"memory": "stock", "case": "32x64x56x56", "layout": "NCHW", "dtype": "float32", "variant": "bn"}
    known |= {"nbytes": 25690112} | fields
    names = {"torch": 200.0, "xhat": 100.0} | ({"identity": 90.0} if what == "step" else {})
    figures = {name: {"median": t, "p20": t - 1, "p80": t + 1, "error": 1e-7} for name, t in names.items()}
    return [Row(**known, what=what, contestant=name, **f) for name, f in figures.items()]  # type: ignore[arg-type]


def verdicts(rows: list[Row]) -> list[Verdict]:
    return judged(races(rows), targets)


def test_the_goals_stand_still() -> None:
    assert FASTER == {
        ("NCHW", "bn"): 2.5,
        ("NCHW", "bn + relu"): 3.5,
        ("NHWC", "bn + relu"): 1.8,
        ("NCHW", "bn + add + relu"): 3.0,
        ("NHWC", "bn + add + relu"): 1.6,
    }
    assert TINY_LIMIT == 1.15
    assert STEP == {("ResNet-20", "NCHW"): 1.2, ("ResNet-20", "NHWC"): 1.1}


def test_verdicts_follow_the_figures() -> None:
    label = "32x64x56x56 NCHW float32, stock memory"
    assert verdicts(rows()) == [
        Verdict("bn, NCHW, 8 MB and more: at least 2.5 x torch", label, 1 / 2.5, 0.5),
        Verdict("bn, 64 KB and more: never slower than torch", label, 1.0, 0.5),
    ]
    assert [v.reached for v in verdicts(rows())] == [False, True]
    (tiny,) = verdicts(rows(case="32x64", layout="NC", nbytes=8192))
    assert (tiny.target, tiny.limit) == ("tiny, bn: at most 1.15 x torch's time", 1.15)
    assert verdicts(rows(case="64x64", layout="NC", nbytes=16384)) == []  # neither tiny nor 64 KB
    (step,) = verdicts(rows("step", variant="ResNet-20", layout="NHWC"))
    assert (step.limit, step.measured, step.reached) == (1 / 1.1, 0.5, True)
    assert verdicts(rows("step", variant="ResNet-18")) == []
    (kept,) = verdicts(rows("saved beyond x", variant="bn + relu", nbytes=10**8))
    assert (kept.limit, kept.measured, kept.reached) == (0.01, 1.0, False)
    (kept,) = verdicts(rows("saved beyond x", variant="bn + add + relu", nbytes=10**8))
    assert kept.reached  # y, and nothing else


@pytest.fixture
def measured() -> list[Row]:
    """A run with a layer and a step in both kinds of memory."""
    found = []
    for memory in ("stock", "reused"):
        found += rows(memory=memory)
        for what in ("step", "peak"):
            found += rows(what, memory=memory, variant="ResNet-20", case="128x3x32x32")
    return found + rows("saved beyond x", nbytes=10**8)


def test_tables_show_the_figures(measured: list[Row]) -> None:
    described = machine(2) | {"priority": "real time (SCHED_FIFO)"}
    table = tables(described, measured)["torch"]
    assert "| (32, 64, 56, 56) NCHW | 0.1 ms | 2.00x / 2.00x |  |  |" in table
    step = "| ResNet-20, (128, 3, 32, 32) NCHW | 0.2 ms | 0.1 ms | 2.00x (1.97–2.03) | {} | 200 MB | 100 MB |"
    assert table.count(step.format("55% → 10%")) == 1
    scattered = [r._replace(p80=99.0) if r.contestant == "identity" else r for r in measured]
    assert step.format("55% → –") in tables(described, scattered)["torch"]
    assert "2 threads, priority real time (SCHED_FIFO);" in table


def test_what_is_measured_covers_the_goals() -> None:
    assert len({layer.label for layer in LAYERS}) == len(LAYERS)
    for layout, variant in FASTER:
        large = [
            v
            for v in LAYERS
            if v.case.layout == layout and v.variant.name == variant and v.case.nbytes >= 8e6
        ]
        assert len(large) >= 4
    assert {"32x64", "8x16x4x4"} <= {layer.case.name for layer in LAYERS}
    assert any(layer.case.nbytes == 64 << 10 for layer in LAYERS)
    assert {(net.name, net.layout) for net in NETS} >= set(STEP)


def test_the_command_measures_both_kinds_of_memory_and_writes_nothing_in_part() -> None:
    before = sorted(RESULTS_FOLDER.glob("*"))
    options = ["--only", "8x16x4x4 NCHW float32 bn + relu", "--rounds", "1"]
    command = [sys.executable, "-m", "benchmarks.torch_bench", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    for memory in ("stock", "reused"):
        assert f"8x16x4x4 NCHW float32, {memory} memory" in ended.stdout
    assert "of 2 reached" in ended.stdout
    assert "wrote" not in ended.stdout
    assert sorted(RESULTS_FOLDER.glob("*")) == before


def test_the_gradient_check_of_a_network_would_see_a_wrong_layer() -> None:
    """The tolerance is wide for rounding through a whole network; a missing term is far outside of it."""
    model = build(NET.name)
    x, labels = steps._batch(NET)
    exact = steps._gradients(build(NET.name).double(), x.double(), labels)
    model.eval()  # no paths through mean and variance
    gradients = steps._gradients(model, x, labels)[1]
    error = float((gradients - exact[1]).norm() / exact[1].norm())
    assert error > 10 * steps.TOLERANCE["gradients"] or np.isnan(error)
