"""`xt.examine`: what the buffers of a checkpoint tell, and what is never claimed."""

import pytest
import torch
from states import HARMFUL_RESET, NAMES, C, changed, put, reset, trained, without
from torch import nn

import xhat.torch as xt


@pytest.fixture(name="trained", scope="module")
def made():
    """See `states.trained`."""
    return trained()


def kinds(source):
    return [(f.cause, f.severity) for f in xt.examine(source).findings]


def test_a_trained_state_dict_has_no_finding(trained):
    d = xt.examine(trained)
    assert d.findings == [] and d.healthy
    assert [(layer["layer"], layer["channels"]) for layer in d.layers] == [(name, C) for name in NAMES]
    assert str(d) == "state dict: nothing harmful was seen in 4 batch norms."
    assert set(d.modes.values()) == {None}


def test_a_new_model_is_a_note():
    assert kinds(nn.Sequential(nn.Conv2d(3, C, 1), nn.BatchNorm2d(C)).state_dict()) == [
        ("statistics-never-updated", "note")
    ]


def test_biases_that_were_initialized_at_random_are_not_called_trained(trained):
    """As RepVGG's are: alike in all layers, which trained ones are not."""
    torch.manual_seed(0)
    drawn = changed(reset(trained), "bn.bias", lambda t: 0.1 * torch.randn(C))
    assert kinds(drawn) == [("statistics-never-updated", "note")]
    assert kinds(put_bias(drawn, 0.3)) == HARMFUL_RESET


def put_bias(state, offset):
    return {name: t + offset if name == "layer1.bn.bias" else t for name, t in state.items()}


def test_initial_statistics_beside_trained_parameters_are_harmful(trained):
    (found,) = xt.examine(reset(trained)).findings
    assert (found.cause, found.severity, found.layers) == ("statistics-never-updated", "harmful", NAMES)
    assert found.proof is None and "xt.recalibrate" in found.code


def test_one_reset_layer_is_named_alone(trained):
    one = {name: t for name, t in reset(trained).items() if name.startswith("layer2")}
    (found,) = xt.examine(trained | one).findings
    assert (found.severity, found.layers) == ("harmful", ("layer2.bn",))


def test_initial_statistics_after_many_batches_are_a_momentum_of_zero(trained):
    (found,) = xt.examine(reset(trained, 700)).findings
    assert (found.cause, found.severity, found.evidence["batches"]) == ("momentum", "harmful", 700)


def test_folded_statistics_without_a_counter_are_only_a_risk(trained):
    folded = without(reset(trained), "num_batches_tracked")
    assert kinds(folded) == [("statistics-never-updated", "risk")]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["layer1.bn.running_mean", "layer1.bn.running_var"])
def test_statistics_that_are_not_finite_are_harmful(trained, name, value):
    (found,) = xt.examine(changed(trained, name, put(3, value))).findings
    assert (found.cause, found.severity, found.layers) == ("statistics-not-finite", "harmful", ("layer1.bn",))
    assert found.evidence["channels"] == 1


def test_a_negative_variance_is_harmful_and_rounding_is_not(trained):
    (found,) = xt.examine(changed(trained, "layer1.bn.running_var", put(3, -0.25))).findings
    assert (found.cause, found.severity) == ("statistics-not-finite", "harmful")
    assert found.evidence["least"] == -0.25
    assert kinds(changed(trained, "layer1.bn.running_var", put(3, -1e-9))) == [("dead-channels", "note")]


def test_a_half_checkpoint_with_infinity_had_too_large_statistics(trained):
    wide = changed(trained, "layer1.bn.running_var", put(3, 7e4))
    (found,) = xt.examine(wide).findings
    assert (found.cause, found.severity, found.evidence["largest"]) == ("range-of-float16", "risk", 7e4)
    half = {name: t.half() if t.is_floating_point() else t for name, t in wide.items()}
    (found,) = xt.examine(half).findings
    assert (found.cause, found.severity, found.layers) == ("range-of-float16", "harmful", ("layer1.bn",))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_dtype_alone_is_no_finding(trained, dtype):
    cast = {name: t.to(dtype) if t.is_floating_point() else t for name, t in trained.items()}
    assert kinds(cast) == []


@pytest.mark.parametrize(
    ("batches", "least", "severity", "left"),
    [
        (12, 0.9, "risk", {"0.1": 0.9**12, "0.01": 0.99**12}),
        (100, 0.5, "note", {"0.01": 0.99**100}),
        (12, 0.2, None, None),  # below .9^12: more than 12 batches of momentum .1, or exact
        (400, 0.5, None, None),
    ],
)
def test_what_is_left_of_the_initial_variance_is_bounded_by_the_least_one(
    trained, batches, least, severity, left
):
    """A running variance is at least the weight of the initial 1."""
    state = changed(trained, "running_var", lambda t: t + least)
    found = xt.examine(changed(state, "num_batches_tracked", lambda t: torch.tensor(batches))).findings
    assert [(f.cause, f.severity) for f in found] == (
        [("statistics-not-converged", severity)] if severity else []
    )
    if left:
        assert found[0].evidence["left"] == pytest.approx(left)


def test_dead_channels_and_small_variances_are_counted(trained):
    assert kinds(changed(trained, "layer0.bn.running_var", put(slice(0, 3), 1e-14))) == [
        ("dead-channels", "note")
    ]
    (found,) = xt.examine(changed(trained, "layer0.bn.running_var", put(slice(0, 3), 3e-6))).findings
    assert (found.cause, found.severity) == ("eps-dominates", "note")
    assert found.evidence["share"] == 3 / C


def test_a_layer_that_counted_twice_as_many_batches_is_a_note(trained):
    (found,) = xt.examine(changed(trained, "layer0.bn.num_batches_tracked", lambda t: 2 * t)).findings
    assert (found.cause, found.severity, found.layers) == (
        "layer-used-more-than-once",
        "note",
        ("layer0.bn",),
    )
    assert kinds(changed(trained, "layer0.bn.num_batches_tracked", lambda t: 2 * t + 1)) == []


def test_parameters_alone_are_a_risk_by_their_names_and_nothing_is_judged(trained):
    d = xt.examine(without(trained, "running_mean", "running_var", "num_batches_tracked"))
    (found,) = d.findings
    assert (found.cause, found.severity, found.layers) == ("missing-statistics", "risk", NAMES)
    assert d.layers == []
    assert d.summary == "state dict has no running statistics: no batch norm can be judged."


def test_one_layer_without_statistics_beside_others_is_a_risk(trained):
    (found,) = xt.examine(without(trained, "layer2.bn.running_mean", "layer2.bn.running_var")).findings
    assert (found.layers, found.evidence["others"]) == (("layer2.bn",), 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.TransformerEncoderLayer(8, 2),
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8)),
        lambda: nn.ModuleDict({"norm1": nn.LayerNorm(8), "subnet": nn.Linear(8, 8)}),
        lambda: nn.Sequential(nn.BatchNorm2d(8, track_running_stats=False)),
    ],
)
def test_other_normalizations_are_not_missing_anything(make):
    d = xt.examine(make().state_dict())
    assert (d.findings, d.layers) == ([], [])
