"""`treat` applies what was proved, and `undo` gives back every bit; which layers are at fault is found by swaps."""

import math
from typing import Any

import pytest
import torch
from small import batches, bits, far_off, fitted, net, snapshot, squared, taught
from torch import nn

import xhat.torch as xt
from xhat.errors import ArgumentError


def diagnosed(model: nn.Module, data: Any) -> xt.Diagnosis:
    return xt.diagnose(model, data, squared, progress=False)


def values(model: nn.Module) -> Any:
    """The bits of parameters and buffers, and the options and modes of layers."""
    options = [
        {k: v for k, v in vars(m).items() if isinstance(v, (int, float, bool))} for m in model.modules()
    ]
    return [(k, bits(v)) for k, v in model.state_dict().items()], options


def never_updated(model: nn.Module) -> None:
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.reset_running_stats()


def stopped(model: nn.Module) -> None:
    far_off(model, "5")
    model[1].momentum = model[5].momentum = 0.0  # type: ignore[index]


def too_few_steps(model: nn.Module) -> None:
    layer = model[5]  # type: ignore[index]
    layer.momentum, left = 0.01, 0.99**30
    layer.running_mean.mul_(1 - left)
    layer.running_var.mul_(1 - left).add_(left)
    layer.num_batches_tracked.fill_(30)


def not_finite(model: nn.Module) -> None:
    model[1].running_var[2] = math.nan  # type: ignore[index]


DAMAGES = {
    "statistics-never-updated": never_updated,
    "momentum": stopped,
    "statistics-not-converged": too_few_steps,
    "statistics-not-finite": not_finite,
    "statistics-of-other-weights": lambda model: far_off(model, "5"),
}


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, xt.BatchNorm2d])
@pytest.mark.parametrize("cause", DAMAGES)
def test_what_is_treated_is_healed_and_can_be_undone(cause: str, norm: Any) -> None:
    model = fitted(net(norm=norm), batches(8))
    data = taught(model, batches(8))
    DAMAGES[cause](model)
    before, whole = values(model), snapshot(model)
    d = diagnosed(model, data)
    assert (d.findings[0].cause, d.findings[0].severity) == (cause, "harmful")
    proof = d.findings[0].proof
    assert proof is not None and not proof.before < 1e3 * proof.after
    done = d.treat()
    assert cause in [name for name, _ in done.applied]
    assert diagnosed(model, data).healthy
    with torch.no_grad():
        error = max(float(squared(model.eval()(x), (x, y))) for x, y in data)
    assert error == pytest.approx(proof.after, abs=1e-9)
    model.load_state_dict(model.state_dict())
    done.undo()
    assert values(model) == before
    assert snapshot(model) == whole


def test_a_treatment_says_what_it_leaves_and_a_healthy_model_is_left() -> None:
    model = fitted(net(), batches(8))
    data = taught(model, batches(8))
    before = snapshot(model)
    d = diagnosed(model, data)
    assert d.healthy
    done = d.treat()
    assert done.applied == [] and [cause for cause, _ in done.not_applied] == [f.cause for f in d.findings]
    assert snapshot(model) == before
    assert str(xt.diagnose(nn.ReLU(), data, progress=False).treat()) == "There was nothing to treat."


def test_layers_whose_parameters_are_frozen_get_frozen_statistics() -> None:
    model = net(norm=xt.BatchNorm2d).train()
    for p in model[1].parameters():
        p.requires_grad = False
    d = xt.diagnose(model, batches(), progress=False)
    assert next(f for f in d.findings if f.cause == "frozen-but-moving").layers == ("1",)
    done = d.treat()
    before = bits(model[1].running_mean)
    model(batches()[0][0])
    assert bits(model[1].running_mean) == before
    done.undo()
    model(batches()[0][0])
    assert bits(model[1].running_mean) != before


def test_a_diagnosis_without_a_model_is_not_treated() -> None:
    d = xt.Diagnosis("Net", "loss", 0, {}, [], [], [])
    with pytest.raises(
        ArgumentError, match=r"treat: the diagnosis has no model, expected one of xt\.diagnose"
    ):
        d.treat()


def deep(count: int = 6) -> nn.Sequential:
    torch.manual_seed(2)
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Linear(7, 7), nn.BatchNorm1d(7), nn.Tanh()]
    return nn.Sequential(*layers)


def vectors() -> list[Any]:
    g = torch.Generator().manual_seed(4)
    return [(torch.randn(16, 7, generator=g), None) for _ in range(8)]


@pytest.mark.parametrize("bad", [("1",), ("10",), ("4", "13")])
def test_exactly_the_layers_that_were_damaged_are_named(bad: tuple[str, ...]) -> None:
    model = fitted(deep(), vectors())
    data = taught(model, vectors())
    for path in bad:
        far_off(model, path, 100)
    found = diagnosed(model, data).findings[0]
    assert found.severity == "harmful"
    assert set(found.layers) == set(bad)


def test_a_repair_is_the_loss_with_this_layer_alone() -> None:
    model = fitted(deep(), vectors())
    data = taught(model, vectors())
    far_off(model, "4", 100)
    far_off(model, "13", 30)
    d = diagnosed(model, data)
    repairs = {row["layer"]: row["repair"] for row in d.layers}
    measured = d._measured
    assert measured is not None
    for path in ("4", "13"):
        copy = fitted(deep(), vectors())
        far_off(copy, "17" if path == "none" else ("13" if path == "4" else "4"), 30 if path == "4" else 100)
        m, mean, m2 = measured.taps["batch"][[x.path for x in measured.layers].index(path)].pooled
        copy.get_submodule(path).running_mean.copy_(torch.from_numpy(mean))  # type: ignore[union-attr, operator]
        copy.get_submodule(path).running_var.copy_(torch.from_numpy(m2 / m))  # type: ignore[union-attr, operator]
        with torch.no_grad():
            expected = sum(float(squared(copy(x), (x, y))) for x, y in data) / len(data)
        assert repairs[path] == pytest.approx(expected, rel=1e-5)


def test_a_shift_of_statistics_that_does_not_hurt_is_no_alarm() -> None:
    model = fitted(net(), batches(8))
    model.append(nn.BatchNorm1d(7))
    model.append(nn.Softmax(1))
    with torch.no_grad():
        model[-2].weight.zero_()
    fitted(model, batches(8))
    data = taught(model, batches(8))
    far_off(model, "10", 1e4)  # its output does not reach the loss: gamma is 0
    d = diagnosed(model, data)
    assert d.layers[2]["log_variance"] > 8
    assert d.healthy


def test_passes_over_the_batches_are_few() -> None:
    """At most 5, and one for each layer that is swapped."""
    model, data = fitted(deep(12), vectors()), None
    data = taught(model, vectors())
    far_off(model, "4", 100)
    passes = 0

    def forward(m: nn.Module, batch: Any) -> Any:
        nonlocal passes
        passes += 1
        return m(batch[0])

    d = xt.diagnose(model, iter(data), squared, forward=forward, progress=False)
    measured = d._measured
    assert measured is not None
    assert list(measured.swapped) == ["4"]  # the others fit
    swapped = len(measured.swapped) + max(0, len(measured.together) - 1) + len(measured.trials)
    assert passes == (4 + swapped) * len(data)
    passes = 0
    xt.diagnose(fitted(deep(), vectors()), iter(vectors()), forward=forward, progress=False)
    assert passes <= 5 * len(vectors())
