"""Damages that are in no case: each is named, and where a remedy is tried, it is proved."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from small import batches, far_off, fitted, net, snapshot, squared, taught
from torch import nn

import xhat.torch as xt
from xhat.torch.doctor.rules.statistics import _beyond_lag
from xhat.torch.doctor.signals import Gap


def worst(model: nn.Module, data: Any, *args: Any) -> xt.Finding:
    before = snapshot(model)
    d = xt.diagnose(model, data, *args, progress=False)
    assert snapshot(model) == before
    assert d.findings, "nothing was found"
    return d.findings[0]


class Stubborn(nn.Sequential):
    """A model whose eval() does nothing: some wrappers override it so."""

    def eval(self) -> "Stubborn":
        return self


@pytest.mark.parametrize("treated", [False, True])
def test_a_model_whose_eval_does_nothing_is_harmed_by_its_batches(treated: bool) -> None:
    data = taught(fitted(net(), batches(8)), batches(8, size=2))
    model = Stubborn(*fitted(net(), batches(8)).train()).train()
    model[3].eval()  # dropout
    d = xt.diagnose(model, data, squared, progress=False)
    found = d.findings[0]
    assert (found.cause, found.severity, found.layers) == ("train-mode-in-evaluation", "harmful", ("1", "5"))
    assert found.proof is not None and found.proof.after < 1e-9 < found.proof.before
    if treated:
        done = d.treat()
        assert not (model[1].training or model[5].training)
        done.undo()
        assert model[1].training and model[5].training


def test_a_negative_variance_is_a_statistic_that_is_not_finite() -> None:
    model = fitted(net(), batches(8))
    data = taught(model, batches(8))
    model[5].running_var[2] = -0.5
    found = worst(model, data, squared)
    assert (found.cause, found.severity, found.layers) == ("statistics-not-finite", "harmful", ("5",))
    assert "in 1 of 5 channels" in found.symptom


def test_a_recalibrated_layer_has_nothing_left_of_the_initial_statistics() -> None:
    """Its counter has the calls, four, as if the average of four batches were a running one."""
    xs = [0.01 * x for x, _ in batches(4)]
    model = fitted(nn.Sequential(nn.BatchNorm2d(3)), xs)
    (row,) = xt.diagnose(model, xs, progress=False).layers
    assert row["left"] == pytest.approx(float(model[0].running_var.min())) and row["left"] < 0.9**4 / 100


def test_what_json_cannot_hold_is_none_and_the_page_shows_it() -> None:
    model = fitted(net(), batches(8))
    data = taught(model, batches(8))
    model[1].running_mean[0] = torch.nan
    d = xt.diagnose(model, data, squared, progress=False)
    json.dumps(d.to_dict(), allow_nan=False)
    json.dumps(d.findings[0].to_dict(), allow_nan=False)
    assert d.to_dict()["modes"]["evaluation"] is None
    assert "NaN" in d.to_html()


def test_a_batch_of_nan_hides_no_damage_and_is_a_risk_of_its_own() -> None:
    model = fitted(net(), batches(8))
    data = taught(model, batches(8))
    expected = xt.diagnose(far_off(model, "5"), data, squared, progress=False)
    bad = torch.full_like(data[3][0], torch.nan), data[3][1]
    d = xt.diagnose(model, [*data[:4], bad, *data[4:]], squared, progress=False)
    assert [f.cause for f in d.findings[:1]] == [f.cause for f in expected.findings[:1]]
    assert (d.findings[0].severity, d.findings[0].layers) == ("harmful", ("5",))
    assert d.modes["pooled"] is not None
    soon = next(f for f in d.findings if f.cause == "statistics-not-finite")
    assert (soon.severity, soon.layers, soon.evidence["inputs"], soon.evidence["of"]) == (
        "risk",
        ("1", "5"),
        1,
        9,
    )


@pytest.mark.parametrize(
    ("factor", "batches_seen", "gain", "beyond"),
    [
        (30.0, 100, 0.5, True),  # far off after many batches
        (30.0, 30, 0.5, False),  # the average has not forgotten its beginning: it may trail the weights
        (1.5, 100, 0.5, False),
        (1.5, 30, 1.5, True),  # the gain alone
    ],
)
def test_statistics_that_trail_the_weights_are_told_from_those_of_others(
    factor: float, batches_seen: int, gain: float, beyond: bool
) -> None:
    model = fitted(net(), batches(8, 64))
    model[5].running_var.mul_(factor)
    for layer in (model[1], model[5]):
        layer.num_batches_tracked.fill_(batches_seen)
    measured = xt.diagnose(model, batches(8, 64), progress=False)._measured
    assert measured is not None
    measured.losses["evaluation"] = np.zeros(8)  # a diagnosis with a loss
    assert _beyond_lag(measured, Gap(1 + gain, 1.0, gain, 0.0, 0.0), measured.layers) == beyond
