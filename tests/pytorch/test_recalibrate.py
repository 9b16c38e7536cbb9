"""`recalibrate`: exact population moments, of any layer, and nothing else is changed, whatever happens."""

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from definition import Problem, definition, generator
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError


class Doubled(nn.BatchNorm2d):
    """Somebody's own layer, with a forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Plain(nn.BatchNorm2d):
    """Somebody's own layer, without one."""


LAYERS: dict[str, Any] = {
    "torch's": nn.BatchNorm2d,
    "ours": xt.BatchNorm2d,
    "ours, fused": lambda c: xt.BatchNorm2d(c, activation="relu"),
    "ours, m - 1": lambda c: xt.BatchNorm2d(c, correction=1, running_correction=0),
    "ours, on many processes": xt.SyncBatchNorm,
    "torch's, on many processes": nn.SyncBatchNorm,
    "torch's subclass": Plain,
    "a forward of its own": Doubled,
}


def batches(*sizes: int, channels: int = 2, seed: str = "data") -> list[Tensor]:
    g = generator(seed)
    return [torch.randn(n, channels, 4, 3, generator=g) * (k + 1) + k for k, n in enumerate(sizes)]


def net(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        LAYERS[kind](2), nn.Conv2d(2, 5, 2), nn.Dropout(0.5), LAYERS[kind](5), nn.Tanh()
    ).eval()


def moments(inputs: list[Tensor], correction: int = 0) -> tuple[Tensor, Tensor]:
    """Of all the values there are, in float64."""
    values = torch.cat([x.double().transpose(0, 1).flatten(1) for x in inputs], dim=1)
    return values.mean(1), values.var(1, correction=correction)


def by_definition(model: nn.Sequential, data: list[Tensor]) -> list[list[Tensor]]:
    """Each layer's input for each batch, where layers normalize by the batch; float64."""
    seen: list[list[Tensor]] = [[], []]
    for x in data:
        x = x.double()
        for k, layer in ((0, model[0]), (1, model[3])):
            if k == 1:
                conv = model[1]
                x = nn.functional.conv2d(x, conv.weight.double(), conv.bias.double())
            seen[k].append(x)
            problem = Problem(x, layer.weight.detach(), layer.bias.detach())
            x = definition(
                problem,
                correction=getattr(layer, "correction", 0),
                activation=getattr(layer, "activation", None),
            ).y
            x = 2 * x if isinstance(layer, Doubled) else x
    return seen


def snapshot(model: nn.Module) -> list[Any]:
    """Everything of a model that recalibrating might touch, beside the running statistics."""
    return [
        (
            m.training,
            getattr(m, "momentum", 0),
            len(m._forward_hooks),
            len(m._forward_pre_hooks),
            sorted(vars(m)),
            type(m),
        )
        for m in model.modules()
    ]


@pytest.mark.parametrize("kind", LAYERS)
def test_running_statistics_are_the_moments_of_all_batches(kind: str) -> None:
    """Of all sizes, and with the batch's own normalization in the layers before."""
    model, data = net(kind), batches(3, 17, 1, 8)
    before = snapshot(model)
    parameters = copy.deepcopy(list(model.parameters()))
    expected = by_definition(model, data)
    report = xt.recalibrate(model, data, progress=False)
    for layer, inputs in zip((model[0], model[3]), expected, strict=True):
        mean, var = moments(inputs, getattr(layer, "correction", 0))
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(layer.running_var.double(), var, rtol=2e-6, atol=2e-6)
        assert layer.num_batches_tracked == 4
    assert snapshot(model) == before
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), parameters, strict=True))
    assert [(r.layer, r.m, r.batches) for r in report] == [("0", 29 * 12, 4), ("3", 29 * 6, 4)]


def test_torch_s_own_way_is_not_these_moments() -> None:
    """update_bn averages the batches' variances, all alike: that this test sees the difference."""
    data = [{"x": x} for x in batches(3, 17, 1, 8)]
    model = net("torch's")
    torch.optim.swa_utils.update_bn([d["x"] for d in data], model)
    _, var = moments([d["x"] for d in data])
    assert (model[0].running_var / var).max() < 0.95


def test_one_batch_evaluates_as_it_trains() -> None:
    model, (x,) = net("ours"), batches(9)
    model[2].p = 0.0
    expected = copy.deepcopy(model).train()(x)
    xt.recalibrate(model, [x], progress=False)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["ours", "torch's", "a forward of its own"])
def test_far_from_zero_the_variance_is_right(kind: str) -> None:
    """E[x^2] - E[x]^2 in float32 has no correct digit here."""
    layer = LAYERS[kind](2)
    data = [x + 1e6 for x in batches(5, 30, 2)]
    xt.recalibrate(layer, data, progress=False)
    mean, var = moments(data)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-7, atol=0)


def test_frozen_layers_and_modes_stay() -> None:
    model = nn.Sequential(
        xt.BatchNorm2d(2), nn.Dropout(0.5), nn.BatchNorm2d(2), xt.BatchNorm2d(2), nn.BatchNorm2d(2)
    ).train()
    model[0].frozen_statistics = True
    model[1].eval()
    model[2].eval()  # in a model that trains: frozen by hand
    model.append(nn.BatchNorm2d(2, track_running_stats=False))
    for kind in (xt.BatchNorm2d, nn.BatchNorm2d, Doubled):
        model.append(kind(2))
        model[-1].track_running_stats = False  # with buffers, for evaluation alone
    before = snapshot(model)
    report = xt.recalibrate(model, batches(5, 4), progress=False)
    assert [r.layer for r in report] == ["3", "4"] and snapshot(model) == before
    for i in (0, 2, 6, 7, 8):
        assert not model[i].running_mean.any() and model[i].num_batches_tracked == 0
    assert model[3].running_mean.all() and model[4].running_mean.all()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("where", ["the batches", "the model"])
def test_whatever_raises_leaves_every_layer_as_it_was(kind: str, where: str) -> None:
    model = net(kind)
    model[3].momentum = None
    model[0].register_forward_hook(lambda *_: None)
    before, state = snapshot(model), copy.deepcopy(model.state_dict())
    calls = []

    def loader() -> Iterator[Tensor]:
        yield from batches(4, 5)
        raise OSError("the disk is gone")

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        calls.append(model.training or model[0].training)
        if where == "the model" and len(calls) == 2:
            raise OSError("the model is gone")
        return model(x)

    with pytest.raises(OSError, match="gone"):
        xt.recalibrate(model, loader(), forward=forward, progress=False)
    assert calls == [True] * 2 and snapshot(model) == before
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_layer_that_is_called_twice_sees_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.spare = xt.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(3 * x + 1)

    model, data = Twice(), batches(4, 6)
    report = xt.recalibrate(model, data, progress=False)
    mean, var = moments([y for x in data for y in (x, 3 * x + 1)])
    torch.testing.assert_close(model.bn.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bn.running_var.double(), var, rtol=1e-5, atol=1e-6)
    assert model.bn.num_batches_tracked == 4 == report[0].batches
    assert report[1] == ("spare", 0.0, 0, 0.0, 1.0) and str(report[1]) == "spare: not called"
    assert model.spare.running_var.tolist() == [1, 1]


def test_a_dry_run_only_reports() -> None:
    layer = xt.BatchNorm2d(2, eps=1e-12)
    x = torch.tensor([[1.0, 10.0], [3.0, 30.0]]).reshape(2, 2, 1, 1)
    report = xt.recalibrate(layer, [x], dry_run=True, progress=False)
    assert layer.running_mean.tolist() == [0, 0] and layer.num_batches_tracked == 0
    (r,) = report
    assert (r.m, r.batches) == (2, 1)
    assert r.shift == pytest.approx(2.0) and r.ratio == pytest.approx(
        0.01
    )  # means 2 and 20, deviations 1 and 10
    assert "off by up to 2 deviations, the variance by a factor of 0.01 (2 values in 1 batches)" in str(r)


def test_masks_weigh() -> None:
    layer, data = xt.BatchNorm2d(2), batches(4, 6)
    weights = [torch.rand(len(x), 1, 4, 3, generator=generator("w")) for x in data]
    report = xt.recalibrate(
        layer, list(zip(data, weights, strict=True)), forward=lambda m, b: m(b[0], mask=b[1]), progress=False
    )
    x, w = (torch.cat(t).double() for t in (data, weights))
    mean = (w * x).sum((0, 2, 3)) / w.sum()
    var = (w * (x - mean.reshape(1, 2, 1, 1)) ** 2).sum((0, 2, 3)) / w.sum()
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), var, rtol=1e-6, atol=1e-6)
    assert report[0].m == pytest.approx(float(w.sum()))


def test_what_is_not_finite() -> None:
    bad = batches(4, 6)
    bad[1][2, 1] = torch.nan
    skip, strict, torchs = (
        xt.BatchNorm2d(2, nonfinite="skip"),
        xt.BatchNorm2d(2, nonfinite="raise"),
        nn.BatchNorm2d(2),
    )
    xt.recalibrate(skip, bad, progress=False)
    torch.testing.assert_close(skip.running_mean[0].double(), moments(bad)[0][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(skip.running_mean[1].double(), moments(bad[:1])[0][1], rtol=1e-5, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"layer '' met NaN or infinity in channels \[1\]"):
        xt.recalibrate(strict, bad, progress=False)
    assert not strict.running_mean.any()
    xt.recalibrate(torchs, bad, progress=False)
    assert torchs.running_mean.isnan().tolist() == [False, True]


def test_progress_is_a_bar_or_lines(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "recalibrate: 2 of 2 batches\n"
    xt.recalibrate(xt.BatchNorm2d(2), batches(3, 4))
    assert capfd.readouterr().err == line, "a file gets no bar"
    monkeypatch.setenv("FORCE_COLOR", "1")
    xt.recalibrate(xt.BatchNorm2d(2), batches(3, 4))
    bar = capfd.readouterr().err
    assert "recalibrate" in bar and line not in bar
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    xt.recalibrate(xt.BatchNorm2d(2), batches(3, 4))
    assert capfd.readouterr().err == line
    xt.recalibrate(xt.BatchNorm2d(2), batches(3, 4), progress=False)
    assert capfd.readouterr() == ("", "")


def test_a_model_in_a_wrapper_is_recalibrated() -> None:
    model, data = net("ours"), batches(4, 6)
    expected = copy.deepcopy(model)
    xt.recalibrate(expected, data, progress=False)
    xt.recalibrate(torch.compile(model, backend="eager"), data, progress=False)
    assert torch.equal(model[3].running_var, expected[3].running_var)
