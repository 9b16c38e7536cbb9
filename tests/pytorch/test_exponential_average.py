"""`ExponentialAverage`: the rule in float64, torch's and timm's interfaces, and what cannot be averaged."""

import copy
import pickle
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import xhat.torch as xt
from xhat.errors import ArgumentError


class Net(nn.Module):
    """With what a state dict may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), xt.BatchNorm1d(4), nn.BatchNorm1d(4))
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("scale", torch.tensor(1.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y


def trajectory(steps: int) -> list[Net]:
    """A model at several steps of a training, in float64."""
    g, model, found = generator("trajectory"), Net().double(), []
    for k in range(steps):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=g))
            model.scale.fill_(k)  # type: ignore[operator, union-attr]
        model(torch.randn(5 + k, 3, generator=g, dtype=torch.float64) + 3 * k)
        found.append(copy.deepcopy(model))
    return found


def test_everything_follows_its_rule() -> None:
    models, d = trajectory(4), 0.7
    average = xt.ExponentialAverage(models[0], d)
    for model in models:
        average.update_parameters(model)
    shares = [d**3, d**2 * (1 - d), d * (1 - d), 1 - d]  # they sum to 1
    states = [dict((*m.named_parameters(), *m.named_buffers())) for m in models]
    found = dict((*average.module.named_parameters(), *average.module.named_buffers()))
    for name, value in found.items():
        each = [s[name].double() for s in states]
        if "num_batches" in name:
            assert value == 4
        elif name == "mask":
            assert value.tolist() == [0.0, -torch.inf]
        elif "running_var" in name:
            means = [s[name.replace("var", "mean")] for s in states]
            mean = sum(w * m for w, m in zip(shares, means, strict=True))
            expected: Any = sum(
                w * (v + (m - mean) ** 2) for w, v, m in zip(shares, each, means, strict=True)
            )
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
        else:
            expected = sum(w * v for w, v in zip(shares, each, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-12, atol=1e-12)
    assert average.n_averaged == 4
    assert not average.module.training


def test_parameters_are_those_of_torch_s_average() -> None:
    models = trajectory(3)
    ours = xt.ExponentialAverage(models[0], lambda n: n / (n + 1))
    theirs = AveragedModel(models[0])  # the plain average, which is this decay
    for model in models:
        ours.update(model, step=3)
        theirs.update_parameters(model)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-14, atol=1e-14)


def test_it_is_saved_loaded_and_copied() -> None:
    models = trajectory(3)
    first = xt.ExponentialAverage(models[0], 0.6)
    first.update(models[0])
    first.update(models[1])
    saved = first.state_dict()
    assert saved.keys() == AveragedModel(models[0]).state_dict().keys()
    loaded = xt.ExponentialAverage(models[2], 0.6)
    loaded.load_state_dict(saved)
    for other in (loaded, copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        other.update(models[2])
    first.update(models[2])
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in first.state_dict().items())
    x = torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(first(x), loaded(x))
    loaded.set(models[0])
    assert torch.equal(loaded(x), copy.deepcopy(models[0]).eval()(x))


def test_wrappers_are_left_out_and_the_average_is_recalibrated() -> None:
    model = trajectory(1)[0]
    average = xt.ExponentialAverage(torch.compile(model, backend="eager"), 0.5)  # type: ignore[arg-type]
    average.update(torch.compile(model, backend="eager"))  # type: ignore[arg-type]
    assert list(average.module.state_dict()) == list(model.state_dict())
    x = torch.randn(64, 3, dtype=torch.float64) * 5
    xt.recalibrate(average, [x], progress=False)
    inputs = model.layers[0](x)
    torch.testing.assert_close(average.module.layers[1].running_var, inputs.var(0, correction=0))  # type: ignore[index, union-attr]


def test_sixteen_bits_are_averaged_in_thirty_two() -> None:
    model = nn.Linear(2, 2).bfloat16()
    with pytest.raises(
        ArgumentError, match=r"^ExponentialAverage: 'weight' is torch.bfloat16, in which steps of 1 - d"
    ):
        xt.ExponentialAverage(model, 0.999)
    average = xt.ExponentialAverage(model, 0.999, dtype=torch.float32)
    average.update(model)
    before = average.module.weight.detach().clone()  # type: ignore[operator, union-attr]
    with torch.no_grad():
        model.weight += 1
    average.update(model)
    moved = average.module.weight.detach() - before  # type: ignore[operator]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.001), rtol=0.02, atol=0)


@pytest.mark.parametrize("decay", [1.5, -0.1, "0.9", float("nan"), lambda n: 2])
def test_a_decay_that_is_none_gets_a_sentence(decay: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"^ExponentialAverage: decay is .*, expected a number from 0 to 1"
    ):
        xt.ExponentialAverage(Net(), decay)


def test_another_model_gets_a_sentence_and_changes_nothing() -> None:
    average = xt.ExponentialAverage(Net(), 0.9)
    before = copy.deepcopy(average.state_dict())
    other, larger = Net(), Net()
    other.extra = nn.Linear(1, 1)  # type: ignore[assignment]
    larger.layers[2] = nn.BatchNorm1d(7)
    for model, sentence in (
        (other, "'extra.weight' is in the model alone"),
        (larger, r"'layers.2.weight' has shape \(7,\) in the model, expected \(4,\)"),
        (3, "model is int, expected a torch.nn.Module"),
    ):
        with pytest.raises(ArgumentError, match=f"^ExponentialAverage: {sentence}"):
            average.update(model)  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in average.state_dict().items())


def test_it_takes_the_place_of_timm_s() -> None:
    """The loop of timm's training script: parameters are the same; state dicts load in both directions."""
    import architectures

    architectures.torchvision()  # which timm imports
    from timm.utils import ModelEmaV3, unwrap_model

    models = trajectory(5)
    ours, theirs = xt.ExponentialAverage(models[0], decay=0.9), ModelEmaV3(models[0], decay=0.9)
    for step, model in enumerate(models[1:], start=1):
        ours.update(model, step=step)
        theirs.update(model, step=step)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
    assert ours.module.layers[1].num_batches_tracked == theirs.module.layers[1].num_batches_tracked  # type: ignore[index, union-attr]
    assert unwrap_model(ours) is ours.module
    resumed = xt.ExponentialAverage(models[1], decay=0.9)
    resumed.load_state_dict(theirs.state_dict())
    theirs.module.load_state_dict(unwrap_model(ours).state_dict())
    for average in (resumed, theirs):
        average.update(models[2], step=5)
    for p, q in zip(resumed.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)
